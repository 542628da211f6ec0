"""Tests of `Unmasked` with several ways to write a rounding."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dent.attacks.adaptive.unmasked import Unmasked


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
