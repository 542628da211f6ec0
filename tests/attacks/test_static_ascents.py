"""Tests that attacks share ascents on the static model, without any change of their results."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent.attacks import make
from dent.attacks.adaptive.static_ascents import AscentCache, StaticAscent, forget, kept_in
from dent.attacks.querier import Querier, Queries
from dent.evaluation.submission.fresh import Origin, fresh
from dent.threat import ThreatModel
from tests.attacks.attack_toys import linear, small_images

LINF = ThreatModel("linf", 0.05)


class Counted(nn.Module):
    """A linear model that counts its calls, and may add random noise."""

    def __init__(self, *, noise: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(4, 108, generator=generator))
        self.noise = noise
        self.calls = 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits = x.flatten(1) @ self.weight.T
        return logits + self.noise * torch.randn(logits.shape) if self.noise else logits


class Shifted:
    """A dynamic defense that subtracts a constant from the static model's logits of class 0."""

    batch_dependent = False
    stateful = False
    randomized = False

    def __init__(self, base: nn.Module) -> None:
        self.base = base

    def unwrap(self) -> nn.Module:
        return self.base

    def adapt(self, x: Tensor) -> Tensor:
        return torch.zeros(4).index_fill(0, torch.tensor([0]), 0.1)

    def predict(self, x: Tensor, adaptation: Tensor) -> Tensor:
        logits: Tensor = self.base(x)
        return logits - adaptation


def batch(model: nn.Module) -> tuple[Tensor, Tensor]:
    x = (255 * small_images(6)).round() / 255
    with torch.no_grad():
        return x, model(x).argmax(1)


def querier(model: nn.Module, seed: int = 7) -> Querier:
    x, y = batch(model)
    return Querier(model, x, y, LINF, plan=lambda _: Queries(99, 99), shared_seed=seed)


def run(model: nn.Module, seed: int = 7, **settings: Any) -> tuple[Tensor, Querier]:
    target = querier(model, seed)
    with torch.no_grad():
        return StaticAscent(iterations=5, **settings).run(target, [model], LINF), target


class Rounding(nn.Module):
    """A model that rounds its input to 8 bits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model((255 * x).round() / 255)
        return logits


def test_model_that_rounds_its_input_does_not_reuse_the_result_of_another() -> None:
    model = Counted()
    x, _ = batch(model)
    assert torch.equal(model(x), Rounding(model)(x))
    found, _ = run(model)
    alone, asked = run(Rounding(model).eval())
    assert bool((asked.zero_by_member > 0).all())
    assert not torch.equal(found, alone)


class Levels(Rounding):
    """A model that rounds its input to a number of levels."""

    def __init__(self, model: nn.Module, levels: Any) -> None:
        super().__init__(model)
        self.levels = levels
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        levels: int = self.levels() if callable(self.levels) else self.levels
        logits: Tensor = self.model((levels * x).round() / levels)
        return logits


@pytest.mark.parametrize("of", [int, lambda levels: lambda: levels])
def test_models_that_differ_in_a_number_or_a_function_share_no_result(
    of: Callable[[int], Any],
) -> None:
    coarse, fine = Levels(Counted(), of(255)), Levels(Counted(), of(510))
    x, _ = batch(coarse)
    assert torch.equal(coarse(x), fine(x))
    for first, second in ((coarse, fine), (fine, coarse)):
        forget()
        before = first.model.calls, second.model.calls
        run(first)
        run(second)
        assert first.model.calls - before[0] == second.model.calls - before[1]


def test_copies_and_fresh_copies_of_a_model_share_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Levels(linear(), lambda: 255)
    found, _ = run(model)
    monkeypatch.setattr(StaticAscent, "_ascend", not_again)
    for same in (copy.deepcopy(model), fresh(Origin(model), 0)):
        assert isinstance(same, nn.Module)
        assert torch.equal(run(same)[0], found)


def not_again(*_: Any) -> None:
    raise AssertionError("computed again")


def test_result_of_a_model_without_a_description_is_not_kept(tmp_path: Path) -> None:
    model: Any = Counted()
    model.lock = Lock()
    with kept_in(tmp_path):
        first, asked = run(model)
        before = model.calls
        second, again = run(model)
    assert model.calls - before > 5
    assert torch.equal(first, second)
    assert asked.done == again.done == StaticAscent(iterations=5).passes()
    assert not list(tmp_path.iterdir())


def test_second_attack_reuses_the_result_and_is_bit_identical() -> None:
    model = Counted()
    first, asked = run(model)
    before = model.calls
    second, kept = run(model)
    assert model.calls - before == 2  # labels of the batch, and the natural images
    assert torch.equal(first, second)
    assert kept.done == asked.done == StaticAscent(iterations=5).passes()
    assert torch.equal(kept.gradients, asked.gradients)
    assert int(kept.gradients.sum()) == 6 * 6
    forget()
    assert torch.equal(run(model)[0], first)


@pytest.mark.parametrize(
    "other", [{"rank": 1}, {"restart": 1}, {"loss": "ce"}, {"rho": 0.5}, {"seed": 8}]
)
def test_ascent_with_another_setting_or_seed_is_computed(other: dict[str, Any]) -> None:
    model = Counted()
    run(model)
    before = model.calls
    run(model, **other)
    assert model.calls - before > 5


def test_ascents_on_different_models_are_not_shared() -> None:
    first, _ = run(Counted(seed=1))
    second, _ = run(Counted(seed=2))
    assert not torch.equal(first, second)


def test_ascent_on_a_randomized_model_is_computed_every_time() -> None:
    model = Counted(noise=0.1)
    target = querier(model)
    with torch.no_grad():
        StaticAscent(iterations=5).run(target, [model], LINF)
        before = model.calls
        torch.manual_seed(3)
        StaticAscent(iterations=5).run(querier(model), [model], LINF)
    assert model.calls - before > 5


def test_transfer_attack_on_a_defense_reuses_ascents_on_its_static_model() -> None:
    model = Counted()
    x, y = batch(model)
    transfer = make("adaptive-transfer", losses="margin", targeted="margin", targets=3)
    on_static = transfer(model, x, y, LINF, seed=1, shared_seed=5)
    before = model.calls
    on_defense = transfer(Shifted(model), x, y, LINF, seed=2, shared_seed=5)
    # Only natural images, random starts and final queries, but none of the 4 ascents.
    assert model.calls - before < 20
    assert torch.equal(on_static.adversarial, on_defense.adversarial)
    forget()
    again = transfer(Shifted(model), x, y, LINF, seed=2, shared_seed=5)
    assert torch.equal(on_defense.adversarial, again.adversarial)
    assert (on_defense.queries, on_defense.backwards) == (again.queries, again.backwards)


def test_warm_start_reuses_ascents_of_an_earlier_transfer_attack() -> None:
    model = Counted()
    x, y = batch(model)
    settings = {"losses": "margin", "targeted": "margin", "targets": 3, "iterations": 20}
    make("adaptive-transfer", **settings)(model, x, y, LINF, seed=1, shared_seed=5)
    before = model.calls
    warm = make("adaptive-stop-gradient", losses="hinge", iterations=20, warm=True, pool=3)
    warm(Shifted(model), x, y, LINF, seed=2, shared_seed=5)
    computed = model.calls - before
    forget()
    before = model.calls
    warm(Shifted(model), x, y, LINF, seed=2, shared_seed=5)
    assert model.calls - before == computed + 4 * 21


def test_oldest_results_are_dropped_first() -> None:
    model = Counted()
    kept = AscentCache(most=2 * 6 * 108 * 4)
    found = []
    for index in range(3):
        target = querier(model)
        with torch.no_grad():
            ascent = StaticAscent(iterations=1, restart=index)
            found.append(ascent._ascend(target, [model], model(target.natural), LINF))
        kept.put(bytes([index]), found[index])
    assert kept.get(bytes([0])) is None
    assert kept.get(bytes([1])) is found[1]
    assert kept.get(bytes([2])) is found[2]


def test_results_in_files_are_bit_identical_for_another_process(tmp_path: Path) -> None:
    model = Counted()
    with kept_in(tmp_path / "mine"):
        first, asked = run(model, rank=2)
    forget()  # as in another process
    before = model.calls
    with kept_in(tmp_path / "other", tmp_path / "mine"):
        second, kept = run(model, rank=2)
    assert model.calls - before == 2  # labels of the batch, and the natural images
    assert torch.equal(first, second)
    assert (kept.done, kept.non_finite) == (asked.done, asked.non_finite)
    assert torch.equal(kept.gradients, asked.gradients)
    assert torch.equal(kept.zero_by_member, asked.zero_by_member)
    fooled = torch.zeros(6, dtype=torch.bool)
    assert kept.recorder.history(fooled) == asked.recorder.history(fooled)
    assert not (tmp_path / "other").exists()


def test_results_kept_earlier_in_memory_are_also_written_to_files(tmp_path: Path) -> None:
    model = Counted()
    first, _ = run(model)
    with kept_in(tmp_path):
        run(model)
    forget()
    before = model.calls
    with kept_in(tmp_path):
        assert torch.equal(run(model)[0], first)
    assert model.calls - before == 2  # labels of the batch, and the natural images


def test_result_of_a_damaged_file_is_computed_and_written_again(tmp_path: Path) -> None:
    model = Counted()
    with kept_in(tmp_path):
        first, _ = run(model)
        (file,) = tmp_path.iterdir()
        whole = file.read_bytes()
        for content in (b"", whole[: len(whole) // 2], b"no tensor", pickle.dumps({"images": 1})):
            file.write_bytes(content)
            forget()
            assert torch.equal(run(model)[0], first)
            assert file.read_bytes() == whole
        forget()
        run(model, seed=8)
    assert len(list(tmp_path.iterdir())) == 2


def test_no_file_is_read_or_written_outside_of_kept_in(tmp_path: Path) -> None:
    model = Counted()
    with kept_in(tmp_path):
        run(model)
    forget()
    before = model.calls
    run(model)
    run(model, seed=9)
    assert model.calls - before > 10
    assert len(list(tmp_path.iterdir())) == 1
