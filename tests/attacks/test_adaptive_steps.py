"""Tests of attacks on adaptation steps: losses at all steps, fewer larger steps, smooth signs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent import DENT, DENT_PLUS, Dent, DentConfig, SmoothingConfig, ViewsConfig
from dent.adaptation.signs import SmoothSigns, smooth_sign
from dent.attacks import make
from dent.attacks.adaptive import NOT_AVAILABLE, AdaptiveAPGD, Among, Rung, Unavailable
from dent.attacks.adaptive.objectives import Aim
from dent.attacks.losses import margin
from dent.defenses import AntiAdversary, Hedge, TentOnline
from dent.defenses.et3 import ET3
from dent.errors import ConfigError
from dent.threat import ThreatModel
from tests.attacks.attack_toys import Toy, linear, small_images
from tests.layer_toys import CLASSES, make_batch, make_toy

BATCH = replace(DENT, steps=5, lr=0.1)
SAMPLE = replace(DENT_PLUS, steps=5, lr=0.1)
SMOOTHED = replace(BATCH, smoothing=SmoothingConfig(sigma=0.6, lr=0.02), statistics="test")
VIEWS = replace(BATCH, steps=3, views=ViewsConfig(count=2))
CONFIGS = pytest.mark.parametrize(
    "config", [BATCH, SAMPLE, SMOOTHED, VIEWS], ids=["batch", "sample", "smoothed", "views"]
)


def toy(config: DentConfig) -> tuple[Dent, Tensor]:
    return Dent(make_toy("BatchNorm2d"), config), make_batch("BatchNorm2d", 4)


def sloped(logits: Tensor) -> Tensor:
    return (logits * torch.linspace(-1, 1, logits.numel()).to(logits).reshape(logits.shape)).sum()


@CONFIGS
@pytest.mark.parametrize("checkpointed", [False, True])
def test_on_step_predictions_match_a_defense_with_fewer_steps(
    config: DentConfig, checkpointed: bool
) -> None:
    """The gradients match the exact gradients of the defenses with fewer steps."""
    defense, x = toy(config)
    seen: list[Tensor] = []
    leaf = x.clone().requires_grad_()
    adaptation = defense.adapt(
        leaf, differentiable=True, checkpointed=checkpointed, on_step=seen.append
    )
    total = sum((sloped(logits) for logits in seen), sloped(defense.predict(leaf, adaptation)))
    assert isinstance(total, Tensor)
    (found,) = torch.autograd.grad(total, leaf)
    assert len(seen) == config.steps
    expected = torch.zeros_like(x)
    for steps, logits in enumerate([*seen, defense(x)]):
        fewer = defense.with_steps(steps)
        torch.testing.assert_close(logits.detach(), fewer(x), atol=1e-9, rtol=1e-9)
        leaf = x.clone().requires_grad_()
        exact = fewer.predict(leaf, fewer.adapt(leaf, differentiable=True))
        expected += torch.autograd.grad(sloped(exact), leaf)[0]
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-7)


def test_on_step_is_not_called_for_steps_without_gradient() -> None:
    defense, x = toy(BATCH)
    seen: list[Tensor] = []
    leaf = x.clone().requires_grad_()
    defense.adapt(leaf, differentiable=True, last=2, on_step=seen.append)
    assert [logits.requires_grad for logits in seen] == [True, True]
    torch.testing.assert_close(seen[0].detach(), defense.with_steps(3)(x))


def test_every_defense_with_steps_calls_on_step_with_a_gradient() -> None:
    """A row that is not finite has NaN logits and does not affect the other rows."""
    model, x = make_toy("BatchNorm2d").eval(), make_batch("BatchNorm2d", 4)
    broken = x.clone()
    broken[1] = torch.nan
    others = torch.tensor([0, 2, 3])
    for defense in (
        Dent(model, BATCH),
        TentOnline(model, replace(BATCH, steps=2)),
        AntiAdversary(model, steps=2),
        Hedge(model, steps=2, seed=0),
        ET3(model, steps=2),
    ):
        seen: list[Tensor] = []
        untyped: Any = defense
        leaf = x.clone().requires_grad_()
        untyped.adapt(leaf, differentiable=True, on_step=seen.append)
        assert len(seen) >= 2
        for logits in seen:
            assert torch.autograd.grad(logits.sum(), leaf, retain_graph=True)[0].any()
        if not isinstance(defense, TentOnline):
            seen.clear()
            untyped.adapt(broken.requires_grad_(), differentiable=True, on_step=seen.append)
            assert seen[0][1].isnan().all()
            assert seen[0][others].isfinite().all()
        with pytest.raises(ConfigError, match="differentiable=True"):
            untyped.adapt(x, on_step=seen.append)


def test_aim_averages_the_loss_over_the_predictions_of_all_steps() -> None:
    logits, labels = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]]), torch.tensor([0, 1])
    before = [logits - 4, torch.tensor([[0.0, 5.0, 0.0], [torch.nan, 1.0, 2.0]])]
    found = Aim(margin, None, before).of(logits, labels)
    # The final prediction replaces a prediction that is NaN.
    torch.testing.assert_close(found, torch.tensor([(-1 - 1 + 5) / 3, (-2 - 2 - 2) / 3]))
    torch.testing.assert_close(Aim(margin).of(logits, labels), torch.tensor([-1.0, -2.0]))


def test_on_step_through_among_gets_only_the_attacked_members() -> None:
    defense, x = toy(BATCH)
    labels = torch.arange(4) % CLASSES
    mask = torch.tensor([True, False, True, False])
    seen: list[Tensor] = []
    Rung("unrolled").view(Among(defense, x, labels, mask), seen.append)(x[mask])
    torch.testing.assert_close(seen[2].detach(), defense.with_steps(2)(x)[mask])


class Deceived(Toy):
    """A defense whose final prediction has a gradient of zero, unlike the one before its step."""

    def adapt(
        self, x: Tensor, *, differentiable: bool = False, last: Any = None, on_step: Any = None
    ) -> None:
        if on_step is not None:
            on_step(self.model(x))

    def predict(self, x: Tensor, adaptation: None) -> Tensor:
        """Return the rounded logits of the model, with a gradient of zero."""
        return self.model(x).detach().round() + 0.0 * x.sum()  # type: ignore[no-any-return]


def test_losses_at_all_steps_succeed_if_the_last_gradient_is_zero() -> None:
    model, x = linear(), small_images(6)
    y, threat = model(x).argmax(1), ThreatModel("linf", 0.1)
    fooled = {
        at: int(
            make("adaptive-unrolled", losses="margin", iterations=10, losses_at=at)(
                Deceived(model), x, y, threat, seed=0
            ).fooled.sum()
        )
        for at in ("last", "all")
    }
    assert fooled["all"] > fooled["last"] + 2


def test_losses_at_all_steps_are_not_available_without_on_step() -> None:
    x = small_images()
    y = torch.zeros(len(x), dtype=torch.int64)
    attack = AdaptiveAPGD("unrolled", iterations=2, losses_at="all")
    (note,) = attack(Toy(linear()), x, y, ThreatModel("linf", 0.1), seed=0).notes
    assert note == f"{NOT_AVAILABLE}unrolled: Toy.adapt has no on_step"


@pytest.mark.parametrize("config", [replace(BATCH, lr=1e-4), replace(SAMPLE, lr=1e-4)])
def test_fewer_larger_steps_change_the_parameters_as_much(config: DentConfig) -> None:
    defense, x = toy(replace(config, steps=16))

    def moved(other: Dent) -> float:
        adapted, start = (each.adapt(x).parameters for each in (other, other.with_steps(0)))
        trained = dict(other.model.named_parameters())
        assert not start or adapted.keys() == start.keys()
        return float(
            torch.stack([(adapted[k] - trained[k].detach()).norm() for k in adapted]).norm()
        )

    far, fewer = moved(defense), moved(defense.with_steps(4))
    larger = moved(defense.with_steps(4, size=4.0))
    assert larger == pytest.approx(far, rel=0.15)
    assert fewer < 0.4 * far
    view = Rung("fewer-steps", larger=True).view(defense)
    assert torch.equal(view(x), defense.with_steps(4, size=4.0)(x))


def test_with_steps_scales_the_step_size_of_every_defense() -> None:
    model = make_toy("BatchNorm2d").eval()
    smoothed = Dent(model, SMOOTHED).with_steps(2, size=3.0).config
    assert smoothed.lr == pytest.approx(0.3)
    assert smoothed.smoothing is not None
    assert smoothed.smoothing.lr == pytest.approx(0.06)
    assert smoothed.steps == 2
    for defense in (AntiAdversary(model), Hedge(model), ET3(model)):
        larger = defense.with_steps(1, size=2.0)
        assert larger.step_size == pytest.approx(2 * defense.step_size)
        assert {**larger.settings, "steps": 0, larger.sized_by: 0} == {
            **defense.settings,
            "steps": 0,
            defense.sized_by: 0,
        }
        with pytest.raises(ConfigError, match="size"):
            defense.with_steps(1, size=0.0)
    with pytest.raises(ConfigError, match="size"):
        Dent(model, BATCH).with_steps(1, size=-1.0)


def test_larger_steps_are_not_available_if_with_steps_has_no_size() -> None:
    with pytest.raises(Unavailable, match="with_steps has no size"):
        Rung("fewer-steps", larger=True).view(Toy(linear()))


def test_smooth_sign_has_the_value_of_sign_and_the_gradient_of_tanh() -> None:
    x = torch.tensor([[-2.0, 0.0, 0.5], [10.0, -20.0, 30.0]], dtype=torch.float64)
    weights = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = smooth_sign(leaf, 0.5)
    assert torch.equal(found, x.sign())
    smooth = (other / (0.5 * x.abs().mean(1, keepdim=True))).tanh()
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), leaf),
        torch.autograd.grad((smooth * weights).sum(), other),
    )
    # Neither the scale nor the other rows matter.
    (scaled,) = torch.autograd.grad((smooth_sign(7 * leaf, 0.5)).sum(), leaf)
    (alone,) = torch.autograd.grad((smooth_sign(leaf[:1], 0.5)).sum(), leaf)
    torch.testing.assert_close(scaled[:1], alone[:1])


def test_signs_are_smooth_only_inside_the_context() -> None:
    x = torch.randn(5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for sign in (torch.sign, torch.sgn, Tensor.sign, Tensor.sgn):
        with SmoothSigns(1.0):
            inside = sign(x)
            assert torch.equal(sign(x.detach()), x.detach().sign())
        assert torch.autograd.grad(inside.sum(), x)[0].all()
        assert not torch.autograd.grad(sign(x).sum(), x)[0].any()


@pytest.mark.parametrize("kind", [AntiAdversary, Hedge])
def test_smooth_signs_gradient_of_input_defenses_matches_one_step_by_hand(kind: Any) -> None:
    """In the step, a sign has its own value and the slope of a tanh of the model's gradient."""
    model, x = make_toy("BatchNorm2d").eval(), make_batch("BatchNorm2d", 3).clamp(0.2, 0.8)
    settings = {} if kind is AntiAdversary else {"seed": 0, "eps": 0.2, "step_size": 0.1}
    defense = kind(model, steps=1, **settings)
    leaf = x.clone().requires_grad_()
    view = Rung("unrolled", smooth_signs=0.3).view(defense)
    answered = view(leaf)
    torch.testing.assert_close(answered.detach(), defense(x), rtol=0, atol=0)
    (found,) = torch.autograd.grad(sloped(answered), leaf)

    leaf = x.clone().requires_grad_()
    start = defense._start(x)
    logits = model(leaf + start)
    loss = defense._loss(logits, logits.detach()).sum()
    (slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
    width = 0.3 * slope.detach().abs().mean(dim=(1, 2, 3), keepdim=True)
    soft = (slope / width).tanh()
    direction = soft + (slope.sign() - soft).detach()
    moved = defense._project(leaf, start - defense.step_size * direction)
    (expected,) = torch.autograd.grad(sloped(model(leaf + moved)), leaf)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    exact = Rung("unrolled").view(defense)(leaf)
    assert not torch.allclose(torch.autograd.grad(sloped(exact), leaf)[0], expected)


class Signed(Toy):
    """A classifier by the mean of x - 0.5 minus three times the mean of its signs."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())

    def adapt(self, x: Tensor, *, differentiable: bool = False, last: Any = None) -> Tensor:
        with torch.set_grad_enabled(differentiable):
            mean: Tensor = (x - 0.5).sign().flatten(1).mean(1)
        return mean

    def predict(self, x: Tensor, adaptation: Tensor) -> Tensor:
        score = (x - 0.5).flatten(1).mean(1) - 3.0 * adaptation
        return torch.stack([score, -score], dim=1)


def test_attack_with_smooth_signs_succeeds_and_without_them_fails() -> None:
    """The exact gradient sees only the mean, and leads away from images that change the signs."""
    x = 0.45 + 0.01 * small_images(4)
    defense, y = Signed(), torch.zeros(4, dtype=torch.int64)
    assert (defense(x).argmax(1) == y).all()
    fooled = {}
    for temperature in (0.0, 1.0):
        attack = make("adaptive-unrolled", losses="margin", iterations=10)
        attack = replace(attack, smooth_signs=temperature)  # type: ignore[call-arg]
        result = attack(defense, x, y, ThreatModel("linf", 0.1), seed=0)
        fooled[temperature] = int(result.fooled.sum())
    assert fooled == {0.0: 0, 1.0: 4}


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"rung": "bpda", "losses_at": "all"}, "losses_at=all is for"),
        ({"rung": "unrolled", "losses_at": "first"}, "losses_at must be last or all"),
        ({"rung": "unrolled", "larger": True}, "larger is for fewer-steps"),
        ({"rung": "unrolled", "larger": 1}, "larger must be true or false"),
        ({"rung": "stop-gradient", "smooth_signs": 0.1}, "smooth_signs is for"),
        ({"rung": "unrolled", "smooth_signs": -1.0}, "greater than 0"),
        ({"rung": "unrolled", "smooth_signs": "soft"}, "must be a number"),
    ],
)
def test_invalid_rung_options_of_adaptive_apgd_are_refused(
    values: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        AdaptiveAPGD(**values)


def test_later_options_are_in_the_settings_only_if_changed() -> None:
    plain = make("adaptive-fewer-steps")
    assert {"larger", "losses_at", "smooth_signs"}.isdisjoint(plain.settings())
    changed = replace(plain, larger=True, losses_at="all", smooth_signs=0.5)  # type: ignore[call-arg]
    settings = changed.settings()
    assert (settings["larger"], settings["losses_at"], settings["smooth_signs"]) == (
        True,
        "all",
        0.5,
    )
    assert make("adaptive-fewer-steps", **settings) == changed
    assert changed.on_static() == plain.on_static()
