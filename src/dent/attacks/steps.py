"""Building blocks of gradient attacks: starts in the ball, and steps of length one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dent.threat import Norm, ThreatModel


def ascent(gradient: Tensor, norm: Norm, share: float = 0.05) -> Tensor:
    """Return the step of length one in `norm` that increases the loss the most.

    Args:
        gradient: (N, ...), one row per image.
        norm: linf moves by the sign of the gradient, l2 along its direction, and l1 by the signs
            of the `share` of largest coordinates, all equally far (Tramer & Boneh, 2019).
        share: Share of an image's values that one step in l1 moves, in (0, 1].
    """
    if norm == "linf":
        return gradient.sign()
    rows = gradient.flatten(1)
    if norm == "l2":
        rows = enlarged(rows, below=1e-18)
        length = rows.norm(dim=1, keepdim=True)
        rows = torch.where(length > 0, rows / length, 0.0)
    else:
        count = max(1, math.ceil(share * rows.shape[1]))
        largest = rows.abs().topk(count, dim=1).indices
        rows = torch.zeros_like(rows).scatter(1, largest, rows.gather(1, largest).sign() / count)
    return rows.reshape(gradient.shape)


def enlarged(gradient: Tensor, below: float = 1e-10) -> Tensor:
    """Return gradients in which rows with a tiny or an infinite l2 norm have a magnitude of one.

    These rows are divided by their largest magnitude. Attacks in l2 divide by the norm plus 1e-12,
    and a norm below 1e-19 underflows. The square of a norm above 1e19 overflows in float32. So
    against a defense with tiny or huge logits they would not move. All other rows stay
    bit-identical.

    Args:
        gradient: (N, ...), one row per image.
        below: Norm below which a row is tiny.
    """
    rows = gradient.flatten(1)
    largest = rows.abs().amax(dim=1, keepdim=True)
    norm = rows.norm(dim=1, keepdim=True)
    tiny = (norm < below) & (largest > 0)
    huge = norm.isinf() & largest.isfinite()
    scaled = tiny | huge
    divisor = torch.where(scaled, largest, 1.0)
    return torch.where(scaled, rows / divisor, rows).reshape(gradient.shape)


def uniform_in_ball(x: Tensor, threat: ThreatModel, draws: torch.Generator | None = None) -> Tensor:
    """Return a perturbation in the shape of `x`, drawn uniformly in the ball on the CPU.

    Args:
        x: Images (N, ...), which give the shape, dtype and device.
        threat: Gives the norm and radius. Its bounds have no effect.
        draws: A CPU generator. Default: torch's global one.
    """
    shape = x.flatten(1).shape
    if threat.norm == "linf":
        delta = 2 * torch.rand(shape, generator=draws) - 1
    else:
        radius = torch.rand(shape[0], 1, generator=draws) ** (1 / shape[1])
        if threat.norm == "l2":
            delta = torch.randn(shape, generator=draws)
            delta = radius * delta / delta.norm(dim=1, keepdim=True)
        else:
            # Laplace draws scaled to the sphere are uniform on it.
            delta = torch.empty(shape).exponential_(generator=draws)
            delta = radius * delta / delta.sum(dim=1, keepdim=True)
            delta = delta * (2.0 * torch.randint(2, shape, generator=draws) - 1.0)
    return (threat.eps * delta).reshape(x.shape).to(x)
