"""Optimizers against torch.optim and pytorch_optimizer, and as pure, differentiable functions."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_optimizer
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dent import DENT, DENT_PLUS, DentConfig
from dent.adaptation.optim import SGD, Adam, AdaMod, Optimizer, make_optimizer

decay = st.sampled_from([0.0, 0.3, 0.9, 0.99, 0.999])
rate = st.sampled_from([1e-4, 6e-3, 0.25, 10.0])
PAIRS: dict[str, tuple[Callable[..., Optimizer], Callable[..., Any]]] = {
    "adam": (
        lambda lr, b1, b2, b3: Adam(lr, (b1, b2)),
        lambda lr, b1, b2, b3: lambda p: torch.optim.Adam(p, lr, (b1, b2)),
    ),
    "sgd": (
        lambda lr, b1, b2, b3: SGD(lr, b1),
        lambda lr, b1, b2, b3: lambda p: torch.optim.SGD(p, lr, b1),
    ),
    "adamod": (
        lambda lr, b1, b2, b3: AdaMod(lr, (b1, b2), b3),
        lambda lr, b1, b2, b3: lambda p: pytorch_optimizer.AdaMod(p, lr, (b1, b2, b3)),
    ),
}
EACH: list[Optimizer] = [SGD(0.1, 0.9), Adam(0.1, (0.9, 0.99)), AdaMod(0.1, (0.9, 0.99), 0.6)]


def gradients(seed: int, steps: int, dtype: torch.dtype) -> Tensor:
    """Gradients of many magnitudes: one element is always zero, and some steps are all zero."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(steps, 7, generator=generator, dtype=torch.float64)
    drawn *= 10 ** torch.empty_like(drawn).uniform_(-6, 2, generator=generator)
    drawn[:, 0] = 0
    drawn[torch.rand(steps, generator=generator) < 0.1] = 0
    return drawn.to(dtype)


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=15)
@given(
    lr=rate,
    b1=decay,
    b2=decay,
    b3=decay,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 999),
)
def test_many_steps_equal_the_reference(
    name: str, lr: float, b1: float, b2: float, b3: float, dtype: torch.dtype, seed: int
) -> None:
    make, make_reference = PAIRS[name]
    ours, theirs = make(lr, b1, b2, b3), make_reference(lr, b1, b2, b3)
    value = torch.linspace(-2, 2, 7, dtype=dtype)
    parameter = torch.nn.Parameter(value.clone())
    reference = theirs([parameter])
    state = ours.init(value)
    for gradient in gradients(seed, 40, dtype):
        parameter.grad = gradient.clone()
        reference.step()
        value, state = ours.step(value, gradient, state)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(value, parameter.detach(), rtol=1e3 * eps, atol=1e3 * eps * lr)
    assert value.dtype == dtype


@pytest.mark.parametrize("optimizer", EACH, ids=repr)
def test_a_step_does_not_modify_its_arguments(optimizer: Optimizer) -> None:
    value = torch.randn(5, requires_grad=True)
    gradient = torch.randn(5)
    state = optimizer.init(value)
    for _ in range(3):
        held = (value, gradient, state)
        before = copy.deepcopy((value.detach(), gradient, state))
        versions = [value._version, gradient._version, *(a._version for a in state.averages)]
        value, state = optimizer.step(value, gradient, state)
        assert torch.equal(held[0].detach(), before[0])
        assert torch.equal(held[1], before[1])
        assert held[2].step == before[2].step
        for old, kept in zip(held[2].averages, before[2].averages, strict=True):
            assert torch.equal(old, kept.detach())
        assert versions == [
            held[0]._version,
            held[1]._version,
            *(a._version for a in held[2].averages),
        ]
    again, _ = optimizer.step(*held)
    assert torch.equal(again, value)


@pytest.mark.parametrize("optimizer", EACH, ids=repr)
def test_rows_are_updated_independently(optimizer: Optimizer) -> None:
    value, drawn = torch.randn(2, 3, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)

    def run(rows: slice) -> Tensor:
        moved = value[rows]
        state = optimizer.init(moved)
        for gradient in drawn:
            moved, state = optimizer.step(moved, gradient[rows], state)
        return moved

    assert torch.equal(run(slice(None)), torch.cat([run(slice(0, 1)), run(slice(1, 2))]))


def trajectory(optimizer: Optimizer, first: Tensor, second: Tensor) -> Tensor:
    value = torch.ones_like(first)
    state = optimizer.init(value)
    for gradient in (first, second, first * second):
        value, state = optimizer.step(value, gradient, state)
    return value


@pytest.mark.parametrize("optimizer", EACH, ids=repr)
def test_derivative_through_steps_matches_finite_differences(optimizer: Optimizer) -> None:
    first = torch.tensor([0.3, -0.7, 2.0], dtype=torch.float64, requires_grad=True)
    second = torch.tensor([-1.1, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: trajectory(optimizer, a, b), (first, second))


@pytest.mark.parametrize("optimizer", EACH, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivative_at_a_zero_gradient_is_finite(optimizer: Optimizer, dtype: torch.dtype) -> None:
    first = torch.zeros(3, dtype=dtype, requires_grad=True)
    second = torch.tensor([0.0, 1e-30, 1.0], dtype=dtype, requires_grad=True)
    value = trajectory(optimizer, first, second)
    derivatives = torch.autograd.grad(value.sum(), (first, second))
    assert value.isfinite().all()
    assert all(derivative.isfinite().all() for derivative in derivatives)


def test_make_optimizer_builds_the_optimizer_of_the_configuration() -> None:
    assert make_optimizer(DENT, 0.5) == Adam(0.5, (0.9, 0.999))
    assert make_optimizer(DENT_PLUS, 0.5) == AdaMod(0.5, (0.99, 0.999), 0.6)
    assert make_optimizer(DentConfig(optimizer="sgd", betas=(0.7, 0.1)), 0.5) == SGD(0.5, 0.7)
