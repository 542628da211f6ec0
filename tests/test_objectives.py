"""Objectives against SciPy and closed forms."""

import math
from typing import Literal

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dent import entropy
from dent.adaptation.objectives import information_maximization, loss


@st.composite
def logits(draw: st.DrawFn) -> Tensor:
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    scale = 10 ** draw(st.floats(-3, 2.5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


@given(logits())
def test_entropy_equals_that_of_scipy(values: Tensor) -> None:
    expected = torch.from_numpy(scipy.stats.entropy(values.softmax(1).numpy(), axis=1))
    torch.testing.assert_close(entropy(values), expected, atol=1e-12, rtol=1e-12)


@given(logits())
def test_entropy_is_between_zero_and_the_logarithm_of_the_number_of_classes(values: Tensor) -> None:
    found = entropy(values)
    assert (found >= 0).all()
    assert (found <= math.log(values.shape[1]) + 1e-12).all()
    assert torch.equal(entropy(torch.zeros_like(values)).exp().round(), found * 0 + values.shape[1])


def test_entropy_of_two_classes_equals_the_closed_form() -> None:
    odds = torch.tensor([0.0, math.log(3)], dtype=torch.float64)
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy(odds[None]).item() == pytest.approx(expected, abs=1e-15)


@given(logits(), st.floats(-50, 50))
def test_entropy_is_invariant_to_a_common_shift_of_the_logits(values: Tensor, shift: float) -> None:
    torch.testing.assert_close(entropy(values + shift), entropy(values), atol=1e-9, rtol=1e-9)


@given(logits())
def test_information_maximization_equals_the_published_formula(values: Tensor) -> None:
    p = values.softmax(1).numpy()

    def published(q: float) -> float:
        return -float(q) * math.log(float(q) + 1e-5)

    together = sum(published(column.mean()) for column in p.T)
    expected = [sum(map(published, row)) - together for row in p]
    torch.testing.assert_close(
        information_maximization(values),
        torch.tensor(expected, dtype=torch.float64),
        atol=1e-12,
        rtol=1e-9,
    )


@given(logits())
def test_information_maximization_of_one_sample_is_zero_with_zero_gradient(values: Tensor) -> None:
    for dtype in (torch.float32, torch.float64):
        alone = values[:1].to(dtype).requires_grad_()
        value = information_maximization(alone)
        (gradient,) = torch.autograd.grad(value.sum(), alone)
        assert value.item() == 0
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_information_maximization_prefers_predictions_that_differ() -> None:
    same = torch.tensor([[9.0, 0.0], [9.0, 0.0]])
    spread = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    assert loss(spread, "information-maximization", "mean") < -0.5
    assert abs(loss(same, "information-maximization", "mean").item()) < 1e-6
    assert loss(same, "entropy", "mean") == loss(spread, "entropy", "mean")


@pytest.mark.parametrize("objective", ["entropy", "information-maximization"])
def test_sum_reduction_is_the_mean_times_the_number_of_samples(
    objective: Literal["entropy", "information-maximization"],
) -> None:
    values = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = loss(values, objective, "sum")
    torch.testing.assert_close(total, 5 * loss(values, objective, "mean"))
    assert total.shape == ()
    assert total.abs() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_objectives_of_half_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    # Probabilities of exp(-12) vanish in float16's softmax; their entropy must not.
    values = torch.zeros(2, 100, dtype=dtype)
    values[:, 0] = 12
    assert entropy(values).dtype == torch.float32
    assert torch.equal(entropy(values), entropy(values.float()))
    assert torch.equal(information_maximization(values), information_maximization(values.float()))
    exact = entropy(values.double())
    torch.testing.assert_close(entropy(values).double(), exact, atol=0, rtol=1e-4)


def test_a_masked_class_does_not_change_the_entropy() -> None:
    values = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    masked = values.clone()
    masked[:, 2] = -math.inf
    masked.requires_grad_()
    found = entropy(masked)
    torch.testing.assert_close(found, entropy(values[:, [0, 1, 3, 4]]), atol=1e-15, rtol=1e-14)
    (gradient,) = torch.autograd.grad(found.sum(), masked)
    assert gradient.isfinite().all()


def test_objectives_and_gradients_of_extreme_logits_are_finite() -> None:
    values = torch.tensor([[1e30, 0.0, -1e30], [500.0, 500.0, -500.0]], requires_grad=True)
    for found in (entropy(values), information_maximization(values)):
        (gradient,) = torch.autograd.grad(found.sum(), values)
        assert found.isfinite().all()
        assert gradient.isfinite().all()
    torch.testing.assert_close(entropy(values).detach(), torch.tensor([0.0, math.log(2)]))
