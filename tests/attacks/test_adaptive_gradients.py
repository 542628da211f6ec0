"""Tests of the gradient ladder: predictions, gradients, requirements and certificates of rungs."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent import DENT, DENT_PLUS, Dent, DentConfig, SmoothingConfig
from dent.attacks.adaptive import (
    NOT_AVAILABLE,
    RUNGS,
    AdaptiveAPGD,
    Rung,
    RungName,
    Unavailable,
    certificate,
)
from dent.attacks.adaptive.capabilities import adapt_accepts
from dent.defenses import TentOnline
from dent.errors import ConfigError, InputError
from dent.threat import ThreatModel
from tests.attacks.attack_toys import Company, Toy, linear, small_images
from tests.layer_toys import CLASSES, make_batch, make_toy

BATCH = replace(DENT, steps=5, lr=0.1)
SAMPLE = replace(DENT_PLUS, steps=5, lr=0.1)
SMOOTHED = replace(BATCH, smoothing=SmoothingConfig(sigma=0.6, lr=0.02), statistics="test")
SERVED: tuple[RungName, ...] = ("stop-gradient", "bpda", "truncated", "unrolled")


class Rounding(Toy):
    """Rounds its input, so that its gradient is zero."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return self.model((x * 8).round() / 8)  # type: ignore[no-any-return]


def toy(config: DentConfig) -> tuple[Dent, Tensor, Tensor]:
    x = make_batch("BatchNorm2d", 4)
    return Dent(make_toy("BatchNorm2d"), config), x, torch.arange(4) % CLASSES


def slope(view: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    logits = view(leaf)
    weights = torch.linspace(-1, 1, logits.numel(), dtype=x.dtype).reshape(logits.shape)
    return logits.detach(), torch.autograd.grad((logits * weights).sum(), leaf)[0]


@pytest.mark.parametrize("config", [BATCH, SAMPLE, SMOOTHED], ids=["batch", "sample", "smoothed"])
def test_only_the_exact_gradient_is_certified(config: DentConfig) -> None:
    defense, x, y = toy(config)
    rungs = RUNGS if config is not SMOOTHED else ("stop-gradient", "unrolled")
    found = {name: certificate(defense, x, y, rung=Rung(name), directions=2) for name in rungs}
    assert {name for name, each in found.items() if each.passed} == {"unrolled"}
    assert found["unrolled"].relative_error < 1e-6
    assert found["stop-gradient"].relative_error > 10 * found["stop-gradient"].threshold
    assert found["unrolled"].dtype == "float64"
    assert "unrolled: passed" in str(found["unrolled"])
    assert "stop-gradient: failed" in str(found["stop-gradient"])


def test_every_rung_of_a_static_model_is_certified() -> None:
    model, x = make_toy("BatchNorm2d").eval(), make_batch("BatchNorm2d", 4)
    y = torch.arange(4) % CLASSES
    assert all(certificate(model, x, y, rung=Rung(name)).passed for name in RUNGS)
    assert certificate(Dent(model, replace(BATCH, steps=1, lr=1e-12)), x, y).passed


def test_certificate_does_not_change_the_defense_or_its_dtype(tiny_cnn: nn.Module) -> None:
    defense = Dent(tiny_cnn, replace(DENT, steps=2))
    before = copy.deepcopy(defense.state_dict())
    x = torch.rand(2, 3, 8, 8)
    assert certificate(defense, x, torch.tensor([0, 1])).passed
    for name, value in defense.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.dtype == before[name].dtype
    assert all(parameter.grad is None for parameter in defense.parameters())


def test_masked_gradient_of_zero_is_not_certified() -> None:
    class Flat(Toy):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            return self.model(x.detach()) + 0 * x.sum()  # type: ignore[no-any-return]

    x, y = small_images(3).double(), torch.tensor([0, 1, 2])
    defense = Flat(linear().double())
    assert not certificate(defense, x, y, rung=Rung("stop-gradient")).passed
    # It passes with BPDA but not with the stale gradient, which reveals masking.
    assert certificate(defense, x, y, rung=Rung("bpda")).passed
    assert not certificate(Rounding(linear().double()), x, y, rung=Rung("bpda")).passed


def test_defense_that_is_not_a_module_is_certified_in_float32() -> None:
    class Plain:
        batch_dependent = False

        def __init__(self) -> None:
            self.model = linear()

        def adapt(self, x: Tensor) -> Any:
            return None

        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            return self.model(x)  # type: ignore[no-any-return]

        def __call__(self, x: Tensor) -> Tensor:
            return self.predict(x, self.adapt(x))

    x, y = small_images(3), torch.tensor([0, 1, 2])
    found = certificate(Plain(), x, y, rung=Rung("stop-gradient"))
    assert found.passed
    assert found.dtype == "float32"
    with pytest.raises(InputError, match="at least 1"):
        certificate(Plain(), x, y, directions=0)


def test_certificate_repeats_the_random_draws_for_every_difference() -> None:
    class Noisy(Toy):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            return self.model(x + 0.1 * torch.randn_like(x)).tanh()  # type: ignore[no-any-return]

    x, y = small_images(3), torch.tensor([0, 1, 2])
    assert certificate(Noisy(linear()), x, y, rung=Rung("stop-gradient")).passed


@pytest.mark.parametrize("config", [BATCH, SAMPLE, SMOOTHED], ids=["batch", "sample", "smoothed"])
def test_all_rungs_except_stand_ins_predict_what_the_defense_predicts(config: DentConfig) -> None:
    defense, x, _ = toy(config)
    served = defense(x)
    for name in SERVED:
        torch.testing.assert_close(Rung(name).view(defense)(x), served, atol=1e-12, rtol=1e-10)
        assert not Rung(name).stands_in
    transfer = Rung("transfer").view(defense)(x)
    torch.testing.assert_close(transfer, Dent(defense.unwrap(), DentConfig(steps=0))(x))
    assert Rung("transfer").stands_in
    fewer = Rung("fewer-steps", 2).view(defense)(x)
    assert torch.equal(fewer, Dent(defense.unwrap(), replace(config, steps=2))(x))
    for other in (transfer, fewer):
        assert (other - served).abs().max() > 1e-4


def test_truncated_gradient_is_stale_at_0_steps_and_exact_at_all_steps() -> None:
    defense, x, _ = toy(BATCH)
    exact = slope(Rung("unrolled").view(defense), x)[1]
    stale = slope(Rung("stop-gradient").view(defense), x)[1]
    cut = [slope(Rung("truncated", k).view(defense), x)[1] for k in (0, 1, 4, 5)]
    torch.testing.assert_close(cut[0], stale, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(cut[3], exact, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(slope(Rung("truncated").view(defense), x)[1], cut[1])
    # More steps need not reduce the error, because Adam divides by averages of earlier gradients.
    assert all(float((each - exact).norm()) > 1e-4 for each in cut[:3])
    weaker = slope(Rung("fewer-steps", 2).view(defense), x)[1]
    torch.testing.assert_close(weaker, slope(Rung("unrolled").view(defense.with_steps(2)), x)[1])


def test_bpda_has_the_defenses_logits_and_the_static_models_gradient() -> None:
    """So BPDA has a gradient for a defense that rounds its input."""
    model, x = linear(), small_images(3)
    defense = Rounding(model)
    answer, found = slope(Rung("bpda").view(defense), x)
    assert torch.equal(answer, defense(x))
    torch.testing.assert_close(found, slope(model, x)[1])
    assert not slope(Rung("stop-gradient").view(defense), x)[1].any()


class Bare:
    """A defense with the required methods only."""

    batch_dependent = True

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def adapt(self, x: Tensor) -> Tensor:
        return x.detach().mean()

    def predict(self, x: Tensor, adaptation: Tensor) -> Tensor:
        return self.model(x) + adaptation  # type: ignore[no-any-return]

    def __call__(self, x: Tensor) -> Tensor:
        return self.predict(x, self.adapt(x))


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("transfer", "no unwrap"),
        ("bpda", "no unwrap"),
        ("fewer-steps", "no steps and with_steps"),
        ("truncated", "adapt has no differentiable, last"),
        ("unrolled", "adapt has no differentiable"),
    ],
)
def test_rung_that_a_defense_does_not_support_is_not_available(
    name: RungName, missing: str
) -> None:
    defense, x = Bare(linear()), small_images()
    with pytest.raises(Unavailable, match=missing):
        Rung(name).view(defense)
    y = torch.zeros(len(x), dtype=torch.int64)
    result = AdaptiveAPGD(name, iterations=2)(defense, x, y, ThreatModel("linf", 0.1), seed=0)
    (note,) = result.notes
    assert note.startswith(f"{NOT_AVAILABLE}{name}: Bare")
    assert missing in note
    assert torch.equal(result.adversarial, x)
    assert torch.equal(result.fooled, defense(x).argmax(1) != y)


def test_stop_gradient_attacks_a_defense_without_optional_methods() -> None:
    defense, x = Bare(linear()), small_images()
    y = defense(x).argmax(1)
    attack = AdaptiveAPGD("stop-gradient", iterations=5)
    result = attack(defense, x, y, ThreatModel("linf", 0.1), seed=0)
    assert result.fooled.sum() >= 4
    assert result.notes == ()


def test_fewer_steps_takes_a_quarter_of_the_steps_and_needs_at_least_2() -> None:
    defense, _, _ = toy(replace(BATCH, steps=1))
    with pytest.raises(Unavailable, match="takes 1 step, not over 1"):
        Rung("fewer-steps").view(defense)
    for steps, expected in ((5, 1), (8, 2), (30, 7)):
        deployed = toy(replace(BATCH, steps=steps))[0]
        x = make_batch("BatchNorm2d", 4)
        found = Rung("fewer-steps").view(deployed)(x)
        torch.testing.assert_close(found, deployed.with_steps(expected)(x))


def test_transfer_uses_an_eval_copy_of_a_model_in_training_mode() -> None:
    model, x = make_toy("BatchNorm2d").train(), make_batch("BatchNorm2d", 3)
    before = copy.deepcopy(model.state_dict())
    found = Rung("transfer").view(Dent(model, BATCH))(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    torch.testing.assert_close(found, copy.deepcopy(model).eval()(x))


def test_options_of_adapt_are_detected_from_its_signature() -> None:
    model = make_toy("BatchNorm2d").eval()
    tent = TentOnline(model)
    assert adapt_accepts(tent, "differentiable")
    assert not adapt_accepts(tent, "last")
    assert adapt_accepts(Company(linear()), "last")
    assert not adapt_accepts(Bare(linear()), "differentiable")

    class Anything(Bare):
        def adapt(self, x: Tensor, **how: Any) -> Tensor:
            return x.detach().mean()

    assert not adapt_accepts(Anything(linear()), "differentiable")  # **how does not name the option

    class Exact(Bare):
        def adapt(self, x: Tensor, *, differentiable: bool = False) -> Tensor:
            return x.mean() if differentiable else x.detach().mean()

    stale, exact = (
        slope(Rung(rung).view(Exact(linear())), small_images())[1]
        for rung in ("stop-gradient", "unrolled")
    )
    assert not torch.equal(stale, exact)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"name": "guess"}, "must be one of transfer"),
        ({"name": "unrolled", "steps": 2}, "unrolled has no steps"),
        ({"name": "fewer-steps", "steps": 0}, "steps must be a whole number, at least"),
        ({"name": "truncated", "steps": -1}, "steps must be a whole number, at least"),
    ],
)
def test_invalid_rung_settings_are_refused(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Rung(**values)
