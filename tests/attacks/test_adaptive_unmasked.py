"""Tests of `Unmasked` with several ways to write a rounding."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dent.attacks import AttackResult, make
from dent.attacks.adaptive.unmasked import Unmasked
from dent.attacks.losses import margin
from dent.threat import ThreatModel
from tests.attacks.attack_toys import linear, small_images


def assigned(values: Tensor) -> Tensor:
    return values.round()


def in_place(values: Tensor) -> Tensor:
    return values.round_()


def as_a_statement(values: Tensor) -> Tensor:
    values.round_()
    return values


def on_a_view(values: Tensor) -> Tensor:
    values.view(-1).round_()
    return values


def by_function(values: Tensor) -> Tensor:
    torch.floor_(values.add_(0.5))
    return values


@pytest.mark.parametrize("rounding", [assigned, in_place, as_a_statement, on_a_view, by_function])
def test_unmasked_gradient_passes_straight_through_any_form_of_rounding(
    rounding: Callable[[Tensor], Tensor],
) -> None:
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 3, generator=draws)
    x = torch.rand(4, 3, 2, 2, generator=draws).requires_grad_()

    def net(images: Tensor) -> Tensor:
        logits: Tensor = (rounding(images * 20) / 20).flatten(1) @ weight
        return logits

    unmasked = Unmasked(net)
    logits = unmasked(x)
    torch.testing.assert_close(logits, ((20 * x).round() / 20).flatten(1) @ weight)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), x)
    torch.testing.assert_close(gradient, weight[:, 1].expand(4, 12).reshape(x.shape))
    assert unmasked.helps


def test_rounding_a_leaf_in_place_raises() -> None:
    with pytest.raises(RuntimeError, match="leaf"):
        Unmasked(lambda x: x.detach().requires_grad_().round_())(torch.ones(2, 3).requires_grad_())


class Heads(nn.Module):
    """Two saturated linear models. The first decides, and is sure of the second's usual class."""

    batch_dependent = False

    def __init__(self, *, speechless: bool = False) -> None:
        super().__init__()
        self.first, self.second = linear(), linear()
        self.usual = int(self.second(small_images(100)).argmax(1).mode().values)
        self.speechless = speechless
        self.calls = 0
        with torch.no_grad():
            self.first[1].bias[self.usual] += 1e3

    def adapt(self, x: Tensor) -> None:
        return None

    def predict(self, x: Tensor, adaptation: None) -> Tensor:
        self.calls += x.requires_grad
        mute = torch.nan if self.speechless and self.calls > 1 else 0.6
        return mute * (1e4 * self.first(x)).softmax(1) + 0.4 * (1e4 * self.second(x)).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(x, self.adapt(x))

    def images(self) -> tuple[Tensor, Tensor]:
        """Return images on which both agree, but the second only just."""
        x = small_images(100)
        with torch.no_grad():
            margins = -margin(self.second(x), torch.full((100,), self.usual))
        x = x[margins > 0][margins[margins > 0].argsort()[:6]]
        return x, torch.full((6,), self.usual)


def unmasking(defense: nn.Module, x: Tensor, y: Tensor, eps: float = 0.05) -> AttackResult:
    attack = make("adaptive-stop-gradient", losses="margin", iterations=10, unmask=True)
    return attack(defense, x, y, ThreatModel("linf", eps), seed=0)


def test_only_predictions_of_the_defense_fool_not_the_scores_behind_them() -> None:
    defense = Heads().eval()
    x, y = defense.images()
    scores = Unmasked(defense)
    leaf = x.clone().requires_grad_()
    assert torch.equal(scores(leaf).detach(), 1e4 * defense.second(x))
    assert scores.replaced is not None
    assert torch.equal(scores.replaced, defense(x))
    found = unmasking(defense, x, y)
    assert not found.fooled.any()
    assert not found.fooled_after["margin"].any()
    assert found.history is not None
    assert (found.history.silent, max(found.history.broken)) == (0, 0)


def test_defense_without_a_prediction_behind_finite_scores_is_fooled() -> None:
    defense = Heads(speechless=True).eval()
    x, y = defense.images()
    found = unmasking(defense, x, y, eps=1e-7)
    assert found.fooled_after["margin"].all()


def test_unsaturated_logits_are_returned_as_they_are() -> None:
    model, x = linear(), small_images().requires_grad_()
    unmasked = Unmasked(model)
    assert torch.equal(unmasked(x), model(x))
    assert unmasked.replaced is None


class Scratch(nn.Module):
    """A saturated model that changes a softmax in place, apart from its output."""

    def __init__(self) -> None:
        super().__init__()
        self.model = linear()

    def forward(self, x: Tensor) -> Tensor:
        logits = 1e4 * self.model(x)
        shares = logits.softmax(1)
        shares.sub_(shares.detach().amax(1, keepdim=True))
        return logits.softmax(1)


def test_scores_changed_in_place_are_passed_over() -> None:
    defense, x = Scratch().eval(), small_images(6)
    with torch.no_grad():
        y = defense(x).argmax(1)
    found = unmasking(defense, x, y)
    assert found.zero_by_member == (2,) * 6  # the output, and once more as scores
    assert found.fooled.any()
