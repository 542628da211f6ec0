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


def divided_in_place(values: Tensor) -> Tensor:
    values = values + 0.5
    values //= 1
    return values


def cast_in_place(values: Tensor) -> Tensor:
    integers = (values + 0.25).int()
    integers += 1
    integers.mul_(2)
    return integers / 2 - 1 + ((values + 0.5).int() - (values + 0.25).int())


ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "byte": lambda z: (z + 0.5).byte().float(),
    "int": lambda z: (z + 0.5).int() * 1.0,
    "to": lambda z: (z + 0.5).to(torch.uint8).to(torch.float32),
    "type": lambda z: (z + 0.5).type(torch.int64).type_as(z),
    "integers": lambda z: ((2 * z + 1).long() // 2).clamp(min=-1).double().float(),
    "//": lambda z: (z + 0.5) // 1,
    "reversed //": lambda z: 1 // (1 / (z + 0.5)),
    "floor_divide": lambda z: torch.floor_divide(z + 0.5, 1.0),
    "div": lambda z: torch.div(z + 0.5, 1.0, rounding_mode="floor"),
    "trunc": lambda z: (z + 0.5).divide(torch.tensor(1.0), rounding_mode="trunc"),
    "remainder": lambda z: (z + 0.5).sub((z + 0.5).detach().remainder(1)).floor(),
    "difference": lambda z: _less(z + 0.5, lambda shifted: torch.remainder(shifted, 1.0)),
    "%": lambda z: _less(z + 0.5, lambda shifted: shifted % 1),
    "frac": lambda z: _less(z + 0.5, torch.frac),
}


def _less(values: Tensor, part: Callable[[Tensor], Tensor]) -> Tensor:
    return values - part(values)


@pytest.mark.parametrize(
    "rounding",
    [assigned, in_place, as_a_statement, on_a_view, by_function, divided_in_place, cast_in_place]
    + [pytest.param(rounding, id=name) for name, rounding in ROUNDINGS.items()],
)
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


def test_integers_keep_their_values_where_no_slope_is_known() -> None:
    table = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    x = torch.rand(4, 1, 1, 1, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def net(images: Tensor) -> Tensor:
        codes = (images * 255).byte().flatten()
        wrapped = (codes * 3 + 7) ^ 5
        looked_up: Tensor = table[codes.long()] + table[wrapped.long()]
        return (
            looked_up + images.flatten(1) + wrapped.float().unsqueeze(1) * (codes > 9).unsqueeze(1)
        )

    assert torch.equal(Unmasked(net)(x), net(x))


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
