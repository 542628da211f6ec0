"""A check by finite differences that an attack follows the gradient of the predictions.

"White-box" is a claim about a gradient, and this check confirms or refutes it. Along each direction
d, the gradient of a view gives one slope, ⟨∇, d⟩, and the predictions of the defense give another,

    (L(x + h·d) − L(x − h·d)) / 2h,    with L the summed loss of the predictions.

A defense that takes gradient steps is discontinuous where a ReLU switches during a step. So with a
large h, the difference contains jumps that no gradient shows; with a small h, rounding errors. The
check tries several h and reports the one with the best agreement. A wrong gradient agrees at none.

This check is for use by hand (docs/tutorials/break-a-defense.md). The certificate that a verdict
needs checks each member (`dent.evaluation.probe.gradient_check`).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dent.attacks.adaptive.capabilities import Unavailable
from dent.attacks.adaptive.ladder import Rung
from dent.attacks.base import isolated_random_state
from dent.attacks.losses import LossName, loss_named
from dent.attacks.protocol import answer, as_queried
from dent.attacks.querier import derivatives_of
from dent.errors import InputError

if TYPE_CHECKING:
    from dent.attacks.protocol import Defense

THRESHOLDS = {torch.float64: 1e-4, torch.float32: 5e-2}
_STEPS = {  # the most likely to agree first
    torch.float64: (1e-6, 1e-5, 1e-7, 1e-8, 1e-4, 1e-9),
    torch.float32: (0.1, 0.3, 0.03, 1.0, 0.01),
}
_BEYOND_DOUBT = 0.01  # share of the threshold; below it, no other step is tried


@dataclass(frozen=True)
class Certificate:
    """The result of checking a gradient by finite differences.

    Attributes:
        rung: The rung of the gradient.
        relative_error: |slope − difference| / |difference|, at the step where it is smallest. It
            is the largest of three: along the gradient, along its sign, and over all random
            directions together, as vectors. Infinite if a difference is exactly zero, because a
            flat loss certifies nothing, or if a value is not finite.
        threshold: The check passes below this error.
        step: h, as a distance in l2 over all pixels of the batch.
        dtype: Precision of the check: `float64` if the defense can be copied into it.
        directions: Number of directions, including the gradient and its sign.
    """

    rung: str
    relative_error: float
    threshold: float
    step: float
    dtype: str
    directions: int

    @property
    def passed(self) -> bool:
        """Whether the gradient agrees with the predictions."""
        return self.relative_error < self.threshold

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "failed"
        return (
            f"{self.rung}: {verdict}, relative error {self.relative_error:.2g} "
            f"(threshold {self.threshold:g}, {self.dtype})"
        )


def certificate(
    defense: Defense,
    x: Tensor,
    y: Tensor,
    *,
    rung: Rung | None = None,
    loss: LossName = "ce",
    directions: int = 4,
    seed: int = 0,
) -> Certificate:
    """Compare a rung's gradient with finite differences of the defense's predictions.

    The defense does not change: a module is first copied in float64, if possible. A batch of a few
    images is enough: with fewer images, fewer ReLUs can switch.

    Args:
        defense: Any.
        x: Images (N, C, H, W), away from kinks of the loss.
        y: Labels (N,).
        rung: The rung of the gradient. Default: `unrolled`.
        loss: A smooth loss.
        directions: Number of random directions, at least 1.
        seed: Seed of the directions and of the global random state before every query, so that a
            defense that draws from it always draws the same.

    Raises:
        Unavailable: The defense does not offer the rung, or the rung has no gradient.
        InputError: `directions` is less than 1.
        NoGradientError: The defense uses an operation without a derivative.
    """
    if directions < 1:
        raise InputError(f"a certificate needs at least 1 random direction, got {directions}")
    rung = rung or Rung("unrolled")
    subject, dtype = _in_double(defense, x)
    x = x.detach().to(dtype)
    summed = loss_named(loss)

    def value(images: Tensor) -> float:
        with isolated_random_state(seed, x.device), torch.no_grad():
            return float(summed(answer(subject, images).to(dtype), y).sum())

    gradient = _gradient(rung, subject, x, y, loss, seed)
    lines = _directions(gradient, directions, seed)
    slopes = [float((gradient * line).sum()) for line in lines]
    error, step = math.inf, _STEPS[dtype][0]
    for h in _STEPS[dtype]:
        differences = [(value(x + h * d) - value(x - h * d)) / (2 * h) for d in lines]
        relative_error = _relative_error(slopes, differences)
        if relative_error < error:
            error, step = relative_error, h
        if error < _BEYOND_DOUBT * THRESHOLDS[dtype]:
            break
    return Certificate(
        rung=rung.name,
        relative_error=error,
        threshold=THRESHOLDS[dtype],
        step=step,
        dtype=str(dtype).removeprefix("torch."),
        directions=len(lines),
    )


def _gradient(
    rung: Rung, defense: Defense, x: Tensor, y: Tensor, loss: LossName, seed: int
) -> Tensor:
    view = rung.view(defense)
    with isolated_random_state(seed, x.device), torch.enable_grad():
        leaf = x.clone().requires_grad_()
        logits = view(as_queried(leaf))
        if not logits.requires_grad:
            raise Unavailable(f"{type(defense).__name__} has no gradient by {rung.name}")
        total = loss_named(loss)(logits.to(x.dtype), y).sum()
        with derivatives_of(defense):
            (gradient,) = torch.autograd.grad(total, leaf, materialize_grads=True)
    return gradient


def _directions(gradient: Tensor, count: int, seed: int) -> list[Tensor]:
    """Return the gradient, its sign, and random directions, each of length one."""
    draws = torch.Generator().manual_seed(seed)
    lines = [gradient, gradient.sign()]
    lines += [
        torch.randn(gradient.shape, generator=draws, dtype=torch.float64)
        .to(gradient.dtype)
        .to(gradient.device)
        for _ in range(count)
    ]
    return [line / line.norm().clamp(min=torch.finfo(line.dtype).tiny) for line in lines]


def _relative_error(slopes: list[float], differences: list[float]) -> float:
    pairs = list(zip(slopes, differences, strict=True))
    if not all(map(math.isfinite, (*slopes, *differences))):
        return math.inf
    along = [abs(s - d) / abs(d) if d else math.inf for s, d in pairs[:2]]
    size = math.hypot(*(d for _, d in pairs[2:]))
    across = math.hypot(*(s - d for s, d in pairs[2:])) / size if size else math.inf
    return max(*along, across)


def _in_double(defense: Defense, x: Tensor) -> tuple[Defense, torch.dtype]:
    """Return a copy in float64, or the defense itself in float32 if it cannot be copied."""
    if not isinstance(defense, nn.Module):
        return defense, torch.float32
    try:
        double = copy.deepcopy(defense).double()
        with isolated_random_state(0, x.device), torch.no_grad():
            logits = answer(double, x.double())
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
        return defense, torch.float32
    return (double, torch.float64) if logits.dtype == torch.float64 else (defense, torch.float32)
