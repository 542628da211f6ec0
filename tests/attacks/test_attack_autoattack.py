"""Tests of the protocols `frozen` and `published` against pyautoattack."""

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pyautoattack import checks
from pyautoattack.autoattack import AutoAttack as Shipped
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from dent.attacks import Attack, AttackResult, AutoAttack, Querier, make
from dent.attacks.autoattack.parts import NORMS, shipped_parts
from dent.attacks.autoattack.published import _Model, configure
from dent.errors import ConfigError
from dent.threat import Norm, ThreatModel
from tests.attacks.attack_toys import (
    SETS,
    SINGLES,
    Company,
    Recorder,
    golden_labels,
    linear,
    small_images,
)

EPS: dict[Norm, str] = {"linf": "8/255", "l2": "0.4", "l1": "4"}


def hard_case(model: nn.Module, images: Tensor) -> Tensor:
    """Return labels with which some members are wrong at once, some late and some never."""
    with torch.no_grad():
        predicted = model(images).argmax(dim=1)
    labels = golden_labels()
    return torch.where(torch.arange(len(images)) < 12, predicted, labels)


def both(
    name: str, model: Any, x: Tensor, y: Tensor, threat: ThreatModel, **settings: Any
) -> tuple[AttackResult, AttackResult]:
    frozen: Attack = make(name, **settings)
    published: Attack = make(name, protocol="published", **settings)
    return frozen(model, x, y, threat, seed=1), published(model, x, y, threat, seed=1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("apgd-ce", {"iterations": 6, "restarts": 2}),
        ("apgd-dlr", {"iterations": 5, "restarts": 2}),
        ("apgd-t", {"iterations": 5, "targets": 2}),
        ("fab", {"iterations": 3, "restarts": 2}),
        ("fab-t", {"iterations": 4, "targets": 2}),
        ("square", {"iterations": 40, "restarts": 2}),
        ("standard", {"iterations": 3, "targets": 2, "square_iterations": 10}),
    ],
)
def test_frozen_and_published_agree_on_a_static_model(
    norm: Norm, name: str, settings: dict[str, Any], tiny_cnn: nn.Module, images: Tensor
) -> None:
    # One batch, so that `published` does not regroup members. The remaining difference is
    # rounding: convolutions over 16 rows and over fewer rows may differ in the last bit.
    x = images[:, :, 8:18, 8:18].contiguous()
    y = hard_case(tiny_cnn, x)
    frozen, published = both(name, tiny_cnn, x, y, ThreatModel(norm, EPS[norm]), **settings)
    assert torch.equal(frozen.fooled, published.fooled)
    torch.testing.assert_close(frozen.adversarial, published.adversarial, atol=1e-6, rtol=0)
    assert 1 < frozen.fooled.sum() < 16
    assert frozen.queries <= make(name, **settings).queries(10, norm).forwards


def test_frozen_and_published_agree_on_the_plus_set(tiny_cnn: nn.Module, images: Tensor) -> None:
    x = images[:, :, 4:16, 4:16].contiguous()
    y = hard_case(tiny_cnn, x)
    settings = {"iterations": 2, "targets": 2, "square_iterations": 5}
    frozen, published = both("plus", tiny_cnn, x, y, ThreatModel("linf", "4/255"), **settings)
    assert torch.equal(frozen.fooled, published.fooled)
    torch.testing.assert_close(frozen.adversarial, published.adversarial, atol=1e-6, rtol=0)
    order = ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert list(frozen.fooled_after) == order
    fallen = [int(claimed.sum()) for claimed in frozen.fooled_after.values()]
    assert fallen == sorted(fallen)
    assert fallen[-1] == frozen.fooled.sum()


def test_published_is_bit_identical_to_pyautoattack(tiny_cnn: nn.Module, images: Tensor) -> None:
    # The class of pyautoattack, called as its users call it.
    x = images[:, :, 4:16, 4:16].contiguous()
    y = hard_case(tiny_cnn, x)
    threat = ThreatModel("linf", "8/255")
    shipped: Any = Shipped(
        tiny_cnn, attacks=["apgd-ce"], eps=threat.eps, seed=7, version="custom", norm="Linf"
    )
    shipped.apgd.n_restarts = 1
    with torch.random.fork_rng():
        adversarial, answers = shipped.run_standard_evaluation(x, y, batch_size=4)
    ours = make("apgd-ce", protocol="published", batch_size=4)(tiny_cnn, x, y, threat, seed=7)
    assert torch.equal(ours.adversarial, adversarial)
    assert torch.equal(ours.fooled, answers != y)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", SETS)
def test_attack_sets_have_the_default_budgets_of_pyautoattack(name: Any, norm: Norm) -> None:
    threat = ThreatModel(norm, EPS[norm])
    x, y = small_images(), torch.zeros(5, dtype=torch.int64)
    target = Querier(linear(), x, y, threat, plan=lambda _: make(name).queries(4))
    quiet = logging.Logger("quiet", level=logging.CRITICAL)
    ours = configure(name, shipped_parts(name, norm), _Model(target), threat, 5, quiet)
    shipped: Any = Shipped(linear(), eps=threat.eps, seed=5, version=name, norm=NORMS[norm])  # type: ignore[arg-type]
    assert ours.attacks_to_run == shipped.attacks_to_run
    for part in ("apgd", "apgd_targeted", "fab", "square"):
        # AutoAttack sets the loss when it runs. All else must be equal.
        mine, its = (
            {
                key: value
                for key, value in vars(getattr(attack, part)).items()
                if key not in ("model", "predict", "logger", "device", "loss")
            }
            for attack in (ours, shipped)
        )
        assert mine == its


def test_published_regroups_members_and_frozen_does_not() -> None:
    model, x = linear(), small_images(6)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    y[4] = (y[4] + 1) % 4
    recorder = Recorder(model, x, batch_dependent=False)
    recorder.strict = False
    threat = ThreatModel("linf", 0.02)
    make("standard", iterations=3, square_iterations=3)(recorder, x, y, threat, seed=0)
    assert set(recorder.sizes) == {6}
    recorder.sizes.clear()
    published = make("apgd-ce", iterations=3, protocol="published", batch_size=4)
    result = published(recorder, x, y, threat, seed=0)
    assert result.queries == len(recorder.sizes)
    # Batches of 4 and 2, then of 4 and 1: the last correct member is now alone in its batch.
    assert {4, 2, 1} <= set(recorder.sizes) <= {4, 2, 1, 3}


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("name", [*SINGLES, *SETS])
def test_few_classes_run_frozen_but_published_refuses_an_undefined_dlr(
    name: str, classes: int
) -> None:
    model, x = linear(classes), small_images()
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    threat = ThreatModel("linf", 0.1)
    settings: dict[str, Any] = {"iterations": 3}
    settings |= {"square_iterations": 3} if name in SETS else {"restarts": 1}
    result = make(name, **settings)(model, x, y, threat, seed=0)
    assert name in ("square", "fab", "fab-t") or result.fooled.any()
    dlr = {"apgd-dlr": 3, "apgd-t": 4}
    undefined = [
        part.name
        for part in shipped_parts(name, "linf")  # type: ignore[arg-type]
        if classes < dlr.get(part.name, 0)
    ]
    assert [note.split()[0] for note in result.notes] == undefined
    published = make(name, protocol="published", **settings)
    if undefined:
        with pytest.raises(ConfigError, match=f"{undefined[0]}.*DLR is undefined.*frozen"):
            published(model, x, y, threat, seed=0)
    else:
        assert torch.equal(published(model, x, y, threat, seed=0).fooled, result.fooled)


def test_bounds_and_l1_iterations_unsupported_by_pyautoattack_are_refused() -> None:
    x, y = small_images(2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"in \[0, 1\], the threat model has \(-1.0, 1.0\)"):
        make("apgd-ce")(linear(), x, y, ThreatModel("linf", 0.1, (-1, 1)), seed=0)
    with pytest.raises(ConfigError, match="three radii and needs at least 3, got 2"):
        make("apgd-ce", iterations=2)(linear(), x, y, ThreatModel("l1", 1), seed=0)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_square_refuses_exactly_the_image_sizes_that_crash_pyautoattack(norm: Norm) -> None:
    threat, y = ThreatModel(norm, 1), torch.zeros(1, dtype=torch.int64)
    square: Any = SquareAttack
    refused = []
    for height, width in [*((side, side) for side in (*range(4, 21), 24, 32)), (15, 20), (20, 15)]:
        x = torch.full((1, 1, height, width), 0.5)
        model = linear(2, height * width)
        shipped = square(model, norm=NORMS[norm], n_queries=1, eps=1.0)
        shipped.init_hyperparam(x)
        try:
            shipped.attack_single_run(x, y)
            crashes = False
        except (RuntimeError, ZeroDivisionError):
            crashes = True
        try:
            make("square", iterations=1)(model, x, y, threat, seed=0)
        except ConfigError:
            refused.append((height, width))
        assert crashes == ((height, width) in refused), (height, width)
    assert (32, 32) not in refused
    assert {(4, 4), (12, 12)} <= set(refused)


def test_autoattack_warnings_become_notes_and_do_not_affect_later_models() -> None:
    model, x = linear(), small_images()
    with torch.no_grad():
        y = model(x).argmax(dim=1)

    class Probing(Company):
        def adapt(self, x: Tensor, **how: Any) -> Tensor:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                torch.autograd.grad(self.model(leaf).sum(), leaf)
            return super().adapt(x, **how)

    attack = make("apgd-ce", iterations=1, protocol="published")
    threat = ThreatModel("linf", 0.01)
    dynamic = attack(Probing(model), x, y, threat, seed=0)
    assert any("dynamic defense" in note for note in dynamic.notes)
    # AutoAttack's counter is global. Without a reset, every later model would look dynamic.
    assert attack(model, x, y, threat, seed=0).notes == ()
    assert any(checks.funcs.values()) is False


def test_published_keeps_the_trace_function_of_a_debugger() -> None:
    def tracer(frame: Any, event: str, argument: Any) -> None:
        return None

    model, x = linear(), small_images()
    y = torch.zeros(5, dtype=torch.int64)
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        attack = make("apgd-ce", iterations=1, protocol="published")
        attack(model, x, y, ThreatModel("linf", 0.01), seed=0)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)


def test_planned_passes_grow_with_the_number_of_published_batches() -> None:
    attack = AutoAttack("apgd-ce", iterations=5, protocol="published", batch_size=4)
    assert attack.passes(10, "linf", 12) == attack.queries(10).times(3)
    assert attack.passes(10, "linf", 13) == attack.queries(10).times(4)
    assert AutoAttack("apgd-ce").passes(10, "linf", 13) == AutoAttack("apgd-ce").queries(10)


def test_modules_of_dent_attacks_do_not_call_backward() -> None:
    # `backward` writes into the .grad of the model. `torch.autograd.grad` does not.
    package = Path(sys.modules["dent.attacks"].__file__ or "").parent
    for source in package.rglob("*.py"):
        code = [line.split("#")[0] for line in source.read_text().splitlines()]
        assert not any(".backward(" in line and "`" not in line for line in code), source


class MuteInSmallBatches(Company):
    """A defense without a prediction for dark images in batches of up to four."""

    def predict(self, x: Tensor, adaptation: Tensor) -> Tensor:
        logits = super().predict(x, adaptation)
        dark = (x[:, :1, 0, 0] < 0.5) & (len(x) <= 4)
        return torch.where(dark, torch.nan, logits)


def test_published_asks_about_non_finite_rows_in_batches_of_its_own_size() -> None:
    x = small_images(8)
    x[:, 0, 0, 0] = 0.9
    x[2, 0, 0, 0] = 0.1
    defense = MuteInSmallBatches(linear())
    y = defense.model(x).argmax(1)
    y[2] = 0  # AutoAttack sees a row without a prediction as this class
    attack = make("apgd-ce", protocol="published", batch_size=4, iterations=2)
    found = attack(defense, x, y, ThreatModel("linf", 1e-4), seed=0)
    assert found.non_finite
    assert found.fooled[2]
