"""Moves of images over which a gradient is compared with the change of the loss."""

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from dent.attacks.steps import enlarged
from dent.support.devices import wide
from dent.threat import ThreatModel

THRESHOLD: Final = {torch.float64: 1e-3, torch.float32: 5e-2}
"""The relative error of a member must stay below this."""
STEPS: Final = {torch.float64: (1e-7, 1e-8, 1e-6, 1e-9), torch.float32: (0.1, 0.3, 0.03)}
"""Lengths in l2 by which a member moves. The first length passes most often."""
COARSE: Final = 0.6
"""A gradient with a relative error below this over large steps is useful to an attack. The gradient
of a wrong model has an error of about 1."""
SHARES: Final = (0.5, 0.25)
"""Lengths of coarse steps, as shares of eps. They exceed rounding to 8 bits."""
LINES: Final = 2
"""Number of random directions besides that of the gradient; twice as many for coarse steps."""


def errors_of(
    loss: Callable[[Tensor], Tensor],
    gradient: Tensor,
    x: Tensor,
    members: Tensor,
    tried: Sequence[Sequence[Tensor]],
    threshold: float,
    *,
    together: bool,
    bounds: tuple[float, float] | None = None,
) -> list[float]:
    """Return for each moved member the smallest relative error of the gradient over all lengths.

    Args:
        loss: The loss of the served logits, by member.
        gradient: The gradient of the summed loss.
        x: The images at which the gradient was computed.
        members: Indices of the members to move.
        tried: For each length, moves of all members (N, ...). The first move is along the gradient.
        threshold: Stop at the first length at which all errors so far are below this.
        together: Whether to move all members at once, because they do not affect each other.
        bounds: The range to which moved images are clamped; None does not clamp.
    """
    least = [math.inf] * len(members)
    for moves in tried:
        slopes, changes = [], []
        for move in moves:
            groups = [members] if together else list(members.reshape(-1, 1))
            slope, change = [], []
            for group in groups:
                step = torch.zeros_like(x).index_copy(0, group, move[group])
                up, down = x + step, x - step
                if bounds is not None:
                    up, down = up.clamp(*bounds), down.clamp(*bounds)
                after, before = loss(up), loss(down)
                predicted = wide(gradient * (up - down)).flatten(1).sum(dim=1)
                if together:
                    slope += predicted.cpu()[group.cpu()].tolist()
                    change += (after - before).cpu()[group.cpu()].tolist()
                else:  # a member may change the answers to all others
                    slope.append(float(predicted.cpu()[group.cpu()].sum()))
                    change.append(float((after - before).sum()))
            slopes.append(slope)
            changes.append(change)
        errors = [
            _relative([row[index] for row in slopes], [row[index] for row in changes])
            for index in range(len(members))
        ]
        least = list(map(min, least, errors))
        if max(least) < threshold:
            break
    return least


def _relative(slopes: Sequence[float], changes: Sequence[float]) -> float:
    """Return the larger of two errors: along the gradient, and over all random directions."""
    if not all(map(math.isfinite, (*slopes, *changes))):
        return math.inf
    along = abs(slopes[0] - changes[0]) / abs(changes[0]) if changes[0] else math.inf
    size = math.hypot(*changes[1:])
    across = math.inf
    if size:
        across = math.hypot(*(s - c for s, c in zip(slopes[1:], changes[1:], strict=True))) / size
    return max(along, across)


def short_moves(gradient: Tensor, draws: torch.Generator, length: float) -> list[Tensor]:
    """Return moves of a length in l2: along the sign of the gradient, and in random directions."""
    lines = [gradient.sign()]
    lines += [_random(gradient, draws) for _ in range(LINES)]
    return [length * _unit(line) for line in lines]


def long_moves(
    gradient: Tensor, draws: torch.Generator, threat: ThreatModel, share: float
) -> list[Tensor]:
    """Return moves by a share of eps: along the gradient, and in random directions.

    They have this length in the norm of the threat model. For linf, they go along the signs.
    """
    lines = [gradient, *(_random(gradient, draws) for _ in range(2 * LINES))]
    length = share * threat.eps
    if threat.norm == "linf":
        return [length * line.sign() for line in lines]
    return [length * _unit(line, order=1 if threat.norm == "l1" else 2) for line in lines]


def _random(like: Tensor, draws: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=draws, dtype=torch.float64).to(like)


def _unit(rows: Tensor, order: int = 2) -> Tensor:
    flat = enlarged(rows).flatten(1)
    length = flat.norm(p=order, dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    unit: Tensor = flat / length
    return unit.reshape(rows.shape)


def finite(error: float) -> float | None:
    """Return an error as records have it: None if it is infinite."""
    return error if math.isfinite(error) else None
