"""Gradient optimizers as functions on tensors, so that a gradient can pass through their steps.

An optimizer is a frozen value. `init` makes the state for a tensor. `step` takes the tensor, its
gradient and the state, and returns the next tensor and state without modifying its arguments.
Every operation is elementwise, so one flat tensor serves for all layers (and samples) at once.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, assert_never

import torch
from torch import Tensor

from dent.config import DentConfig

EPSILON = 1e-8
"""Added to the root of the second moment, as in torch.optim."""


class State(NamedTuple):
    """State of an optimizer for one tensor: steps taken and moving averages."""

    step: int
    averages: tuple[Tensor, ...]


class Optimizer(Protocol):
    """A pure optimizer.

    Parameter, gradient and averages of one tensor all have its shape, which may be any.
    """

    def init(self, parameter: Tensor) -> State:
        """Return the state before the first step."""
        ...

    def step(self, parameter: Tensor, gradient: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the parameter and the state after one step."""
        ...


def _root(square: Tensor) -> Tensor:
    """Return the square root, with a derivative of 0 at 0 instead of infinity.

    A unit that no input reaches has gradient 0 and second moment 0; without this the derivative
    through the step would be 0 times infinity.
    """
    if not torch.is_grad_enabled():
        return square.sqrt()
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)


@dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum, as torch.optim.SGD with dampening 0 and no Nesterov."""

    lr: float
    momentum: float

    def init(self, parameter: Tensor) -> State:
        """Return a zero velocity."""
        return State(0, (torch.zeros_like(parameter),))

    def step(self, parameter: Tensor, gradient: Tensor, state: State) -> tuple[Tensor, State]:
        """Move along the velocity."""
        velocity = self.momentum * state.averages[0] + gradient
        return parameter - self.lr * velocity, State(state.step + 1, (velocity,))


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015), as torch.optim.Adam without weight decay."""

    lr: float
    betas: tuple[float, float]

    def init(self, parameter: Tensor) -> State:
        """Return zero moments."""
        return State(0, (torch.zeros_like(parameter), torch.zeros_like(parameter)))

    def step(self, parameter: Tensor, gradient: Tensor, state: State) -> tuple[Tensor, State]:
        """Move by the first moment over the root of the second, both bias-corrected."""
        step, first, second = _moments(gradient, state, self.betas)
        bias1, bias2 = 1 - self.betas[0] ** step, 1 - self.betas[1] ** step
        scale = _root(second) / math.sqrt(bias2) + EPSILON
        moved = parameter.addcdiv(first, scale, value=-self.lr / bias1)
        return moved, State(step, (first, second))


@dataclass(frozen=True)
class AdaMod:
    """AdaMod (Ding et al. 2019): Adam whose elementwise rates are capped by their own average."""

    lr: float
    betas: tuple[float, float]
    beta3: float

    def init(self, parameter: Tensor) -> State:
        """Return zero moments and a zero average rate."""
        return State(0, tuple(torch.zeros_like(parameter) for _ in range(3)))

    def step(self, parameter: Tensor, gradient: Tensor, state: State) -> tuple[Tensor, State]:
        """Move by the first moment times the smaller of the rate and its moving average."""
        step, first, second = _moments(gradient, state, self.betas)
        bias1, bias2 = 1 - self.betas[0] ** step, 1 - self.betas[1] ** step
        rate = (self.lr * math.sqrt(bias2) / bias1) / (_root(second) + EPSILON)
        average = state.averages[2].lerp(rate, 1 - self.beta3)
        moved = parameter.addcmul(torch.minimum(rate, average), first, value=-1)
        return moved, State(step, (first, second, average))


def _moments(
    gradient: Tensor, state: State, betas: tuple[float, float]
) -> tuple[int, Tensor, Tensor]:
    first = state.averages[0].lerp(gradient, 1 - betas[0])
    second = (betas[1] * state.averages[1]).addcmul(gradient, gradient, value=1 - betas[1])
    return state.step + 1, first, second


def make_optimizer(config: DentConfig, lr: float) -> Optimizer:
    """Return the optimizer that `config` names, at learning rate `lr`."""
    if config.optimizer == "sgd":
        return SGD(lr, config.betas[0])
    if config.optimizer == "adam":
        return Adam(lr, config.betas)
    if config.optimizer == "adamod":
        return AdaMod(lr, config.betas, config.beta3 if config.beta3 is not None else 0.0)
    assert_never(config.optimizer)
