from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dent import DENT, Dent
from dent.attacks import (
    PGD,
    Attack,
    AttackError,
    DynamicDefense,
    Outcome,
    Querier,
    answer,
    is_batch_dependent,
    make,
)
from dent.attacks.base import isolated_random_state
from dent.errors import InputError
from dent.evaluation.submission.submission import submit
from dent.threat import ThreatModel
from tests.attacks.attack_toys import Company, Toy, linear, small_images

THREAT = ThreatModel("linf", "8/255")


@dataclass(frozen=True)
class Scripted(Attack):
    """Returns the natural images plus `move`, and records a random number of each run."""

    move: float
    seen: list[float] = field(default_factory=list)

    @property
    def default_name(self) -> str:
        return "scripted"

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        self.seen.append(float(torch.rand(1)))
        assert not torch.is_grad_enabled()
        fooled = target(target.natural).argmax(dim=1) != target.labels
        return Outcome(target.natural + self.move, fooled)


def gray(count: int = 3) -> tuple[Tensor, Tensor]:
    return torch.full((count, 3, 6, 6), 0.5), torch.zeros(count, dtype=torch.int64)


def test_attack_that_returns_images_outside_the_threat_model_raises() -> None:
    x, y = gray()
    with pytest.raises(AttackError, match=r"scripted left .*linf 8/255: 3 of 3 .* by up to 0.0086"):
        Scripted(0.04)(linear(), x, y, THREAT, seed=0)
    with pytest.raises(AttackError, match="left"):
        Scripted(float("nan"))(linear(), x, y, THREAT, seed=0)


def test_rounding_errors_are_projected_back_inside_with_a_note() -> None:
    x, y = gray()
    result = Scripted(8 / 255 * 1.0005)(linear(), x, y, THREAT, seed=0)
    assert not THREAT.check(result.adversarial, x).any()
    assert result.notes == ("3 images put back inside linf 8/255 after rounding",)
    exact = Scripted(8 / 255)(linear(), x, y, THREAT, seed=0)
    assert exact.notes == ()
    assert torch.equal(exact.adversarial, x + 8 / 255)


def test_attack_that_returns_wrong_shapes_raises_an_attack_error() -> None:
    @dataclass(frozen=True)
    class Short(Scripted):
        def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
            whole = super().run(target, threat, seed)
            return Outcome(whole.adversarial[:2], whole.fooled)

    with pytest.raises(AttackError, match=r"scripted returned \(2, 3, 6, 6\)"):
        Short(0.0)(linear(), *gray(), THREAT, seed=0)


def test_random_state_is_seeded_for_an_attack_and_restored_after_a_crash() -> None:
    class Crash(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch.rand(7)
            raise KeyError("boom")

    attack, model = Scripted(0.0), linear()
    state = torch.get_rng_state()
    attack(model, *gray(), THREAT, seed=5)
    attack(model, *gray(), THREAT, seed=5)
    with pytest.raises(KeyError):
        attack(Crash().eval(), *gray(), THREAT, seed=6)
    assert attack.seen[0] == attack.seen[1] != attack.seen[2]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("x", "y", "seed", "match"),
    [
        (torch.zeros(3, 6, 6), None, 0, r"float32 images \(N, C, H, W\).*float32 \(3, 6, 6\)"),
        (torch.zeros(3, 3, 6, 6).double(), None, 0, "float64"),
        (torch.zeros(0, 3, 6, 6), None, 0, "not empty"),
        ([1.0], None, 0, "got list"),
        (None, torch.zeros(3), 0, r"int64 labels \(3,\), got float32"),
        (None, torch.zeros(2, dtype=torch.int64), 0, r"got int64 \(2,\)"),
        (None, torch.tensor([0, -1, 0]), 0, "not be negative, got -1"),
        (None, torch.tensor([0, 9, 0]), 0, "returned 4 classes.*labels go up to 9"),
        (torch.full((3, 3, 6, 6), 1.5), None, 0, r"bounds \[0, 1\], got values from 1.5 to 1.5"),
        (torch.full((3, 3, 6, 6), float("nan")), None, 0, "bounds"),
        (None, None, -1, "seed"),
        (None, None, 1.5, "seed"),
        (None, None, True, "seed"),
    ],
)
@pytest.mark.parametrize("name", ["pgd", "apgd-ce"])
def test_invalid_images_labels_and_seeds_are_refused(
    name: str, x: Any, y: Any, seed: Any, match: str
) -> None:
    good_x, good_y = gray()
    x = good_x if x is None else x
    y = good_y if y is None else y
    with pytest.raises(InputError, match=match):
        make(name, iterations=1)(linear(), x, y, THREAT, seed=seed)


@pytest.mark.parametrize(
    ("logits", "match"),
    [
        (lambda x: x, r"logits \(3, classes\), got \(3, 3, 6, 6\)"),
        (lambda x: x.flatten(1)[:2], r"got \(2, 108\)"),
        (lambda _: "no", "got str"),
        (lambda x: x.flatten(1)[:, :1], "1 class; the attack needs at least 2"),
    ],
)
def test_model_outputs_that_are_not_logits_are_refused(logits: Any, match: str) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return logits(x)

    with pytest.raises(InputError, match=match):
        make("pgd")(Odd().eval(), *gray(), THREAT, seed=0)


def test_defense_whose_number_of_classes_changes_is_refused() -> None:
    class Moody(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Moody.calls += 1
            return x.flatten(1)[:, : 2 + Moody.calls]

    with pytest.raises(InputError, match="3 classes before and 4 now"):
        make("pgd")(Moody().eval(), *gray(), THREAT, seed=0)


def test_dynamic_defenses_and_batch_dependence_are_recognized() -> None:
    assert isinstance(Company(linear()), DynamicDefense)
    assert not isinstance(linear(), DynamicDefense)
    assert is_batch_dependent(Company(linear()))
    assert not is_batch_dependent(Toy(linear()))
    assert not is_batch_dependent(linear())
    with pytest.raises(InputError, match=r"training mode.*\.eval\(\)"):
        is_batch_dependent(linear().train())
    with pytest.raises(InputError, match=r"expects a torch\.nn\.Module.*got function"):
        is_batch_dependent(lambda x: x)  # type: ignore[arg-type]


@pytest.mark.parametrize("declared", ["no", None, 2, lambda: False])
def test_a_batch_dependence_that_is_no_truth_value_is_refused(declared: Any) -> None:
    class Declares(Toy):
        batch_dependent = declared

    with pytest.raises(InputError, match="must be True or False, got") as caught:
        is_batch_dependent(Declares(linear()))
    assert ("@property" in str(caught.value)) is callable(declared)
    Declares.batch_dependent = torch.tensor(data=True)
    assert is_batch_dependent(Declares(linear())) is True


def test_dent_is_a_batch_dependent_dynamic_defense(tiny_cnn: nn.Module) -> None:
    dent = Dent(tiny_cnn, DENT)
    assert isinstance(dent, DynamicDefense)
    assert is_batch_dependent(dent)


def test_half_precision_logits_are_attacked_in_float32() -> None:
    class Half(Toy):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            return self.model(x).half()  # type: ignore[no-any-return]

    model, x = linear(), small_images()
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    for name in ("pgd", "apgd-t", "fab", "square"):
        result = make(name, iterations=3)(Half(model), x, y, ThreatModel("linf", 0.1), seed=0)
        assert result.adversarial.dtype == torch.float32
        assert name == "square" or result.fooled.any()


def test_images_clamped_to_bounds_without_an_exact_float32_are_attacked() -> None:
    threat = ThreatModel("linf", "0.05", (-2.1179, 2.64))
    x = (9 * small_images(2) - 4).clamp(*threat.bounds)
    assert float(x.max()) > 2.64
    y = torch.zeros(2, dtype=torch.int64)
    for attack in (PGD(iterations=2), make("adaptive-unrolled", iterations=2)):
        found = attack(linear(), x, y, threat, seed=0)
        assert not threat.check(found.adversarial, x).any()
    beyond = torch.full_like(x, 2.64 + 2 * threat.slack)
    with pytest.raises(InputError, match="bounds"):
        PGD(iterations=2)(linear(), beyond, y, threat, seed=0)


class Uncallable(nn.Module):
    """A defense that is a module without a `forward`."""

    batch_dependent = False

    def __init__(self) -> None:
        super().__init__()
        self.model = linear()

    def adapt(self, x: Tensor) -> None:
        return None

    def predict(self, x: Tensor, adaptation: None) -> Tensor:
        logits: Tensor = self.model(x)
        return logits


def test_module_without_forward_is_queried_by_adapt_and_predict() -> None:
    x, defense = small_images(2), Uncallable().eval()
    assert torch.equal(answer(defense, x), defense.model(x))
    own: Any = Uncallable().eval()
    own.forward = lambda x: 2 * own.model(x)
    assert torch.equal(answer(own, x), 2 * own.model(x))


def test_every_cuda_device_in_use_is_restored_after_an_attack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forked: list[list[int]] = []

    @contextmanager
    def fork_rng(devices: list[int]) -> Iterator[None]:
        forked.append(devices)
        yield

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    for in_use in (True, False):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda in_use=in_use: in_use)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with isolated_random_state(0, torch.device("cpu")):
            pass
    assert forked == [[0, 1], []]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_static_model_in_another_precision_is_refused_with_advice(dtype: torch.dtype) -> None:
    model, x, y = linear().to(dtype), small_images(), torch.zeros(5, dtype=torch.int64)
    said = rf"Sequential, whose weights are {dtype}, .* convert it with \.float\(\), or cast"
    for name in ("pgd", "apgd-ce", "gmsa-min", "square"):
        with pytest.raises(InputError, match=said):
            make(name)(model, x, y, ThreatModel("linf", 0.1), seed=0)
    with pytest.raises(InputError, match=said):
        submit(model, x, seed=0)


def test_other_errors_of_a_model_are_not_changed() -> None:
    x, y = small_images(), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        make("pgd")(linear(pixels=7), x, y, ThreatModel("linf", 0.1), seed=0)


@pytest.mark.parametrize("threat", ["linf", 0.1, None])
def test_threat_of_another_type_is_refused(threat: Any) -> None:
    x, y = small_images(), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(InputError, match=r"such as ThreatModel\('linf', '8/255'\), got "):
        make("pgd")(linear(), x, y, threat, seed=0)


def test_integers_of_numpy_are_seeds() -> None:
    x, y, threat = small_images(), torch.zeros(5, dtype=torch.int64), ThreatModel("linf", 0.1)
    seed: Any = np.int64(3)
    one, other = (make("pgd")(linear(), x, y, threat, seed=each) for each in (seed, 3))
    assert torch.equal(one.adversarial, other.adversarial)
    wrong: Any
    for wrong in (np.float64(3), np.int64(-1), torch.ones(2), True):
        with pytest.raises(InputError, match="seed must be a whole number"):
            make("pgd")(linear(), x, y, threat, seed=wrong)
