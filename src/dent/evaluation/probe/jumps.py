"""Whether the scores of a defense jump, so that no attack can follow them to a wrong class.

A gradient can be exact, and predict the scores over large steps, but still lead nowhere:

    boundaries    The scores do not fall towards the place where the predicted class changes, but
                  jump there, or are far steeper there. For example, one net votes for the class, or
                  adds its saturated probabilities, and another net gives the scores. Or scores are
                  reversed, as against attacks by queries (Chen et al., NeurIPS 2022).
    tiny moves    The scores change with a move that is invisible to the gradient. For example, a
                  defense recognizes natural images, because their pixels have 8 bits. It then
                  predicts other images better than an attacker's file with 8 bits.

Each score is compared with what the gradient promises: the change along it from half of eps below
an image to half of eps above. All moves here are much smaller, so honest scores change little.
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from dent.attacks import Queries
from dent.support.devices import wide, widest
from dent.support.predictions import is_prediction
from dent.threat import ThreatModel

Served = Callable[[Tensor], Tensor]
"""A function from a batch (N, C, H, W) to the served logits (N, classes)."""
Promise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function from a batch, labels (N,) and other classes (N,) to the change of the margin of these
classes that the gradient there promises, (N,) in logits."""

_TINY: Final = 1 / 16
"""Length of a tiny move, as a share of eps."""
_JUMP: Final = 0.25
"""A score that changes over a tiny move by more than this share of what the gradient promises has
jumped."""
_STEEP: Final = 0.1
"""The same at a boundary, where the two images are as near, but in an arbitrary direction. So the
scores are steeper there than along the gradient at the natural image."""
_STEEPER: Final = 10.0
"""If the gradient at a boundary promises this many times more than that at the natural image, the
natural one hides it."""
_LINE: Final = 0.1
"""The gradient counts as promising at least this share of the change over the whole line."""
_MOST: Final = 0.25
"""Share of the measured members that may jump, of all and of those that an attack left correct."""
_HALVINGS: Final = 14
"""Largest number of halvings of a line."""
_LEVELS: Final = 255
"""Largest value of a pixel in an image file."""

AT_BOUNDARIES: Final = Queries(1 + 2 * (_HALVINGS + 4), 2)
"""Maximum number of passes of a batch in `at_boundaries`."""
OVER_TINY_MOVES: Final = Queries(3, 0)
"""Number of passes of a batch in `over_tiny_moves`."""


def at_boundaries(
    served: Served,
    promise: Promise,
    x: Tensor,
    promised: Tensor,
    threat: ThreatModel,
    draws: torch.Generator,
    standing: Tensor,
) -> bool:
    """Return whether the scores jump where the predicted class changes, or are far steeper there.

    Each member moves on a line to another image of the batch, and on a line to noise. Halving finds
    two neighbors on the line with different classes. The scores of these two classes are equal
    somewhere between them, unless they jump.

    Args:
        served: The served logits.
        promise: The promise of the gradient.
        x: Natural images (N, C, H, W).
        promised: The promise at these images for the likeliest wrong class, (N,).
        threat: Gives the norm, eps and the bounds.
        draws: A CPU generator, for the noise.
        standing: bool (N,), the members that an attack left correct.
    """
    if threat.eps == 0:
        return False
    logits = served(x)
    low, high = threat.bounds
    noise = low + (high - low) * torch.rand(x.shape, generator=draws)
    for ends in (x[_partners(_classes(logits))], noise.to(x)):
        boundary = boundary_on_line(served, x, ends, logits, threat)
        unit = torch.maximum(promised, _LINE * boundary.whole)
        there = promise(boundary.images, *boundary.classes.clamp(min=0).unbind(dim=1))
        jumped = ~(boundary.change <= _STEEP * unit) | ~(there <= _STEEPER * unit)
        if too_many(boundary.found & jumped, boundary.found, standing):
            return True
    return False


def over_tiny_moves(
    served: Served,
    margin: Callable[[Tensor], Tensor],
    x: Tensor,
    gradient: Tensor,
    promised: Tensor,
    threat: ThreatModel,
    draws: torch.Generator,
    standing: Tensor,
) -> bool:
    """Return whether the scores jump over a random tiny move, or when pixels are rounded to 8 bits.

    Args:
        served: The served logits.
        margin: The margin of a fixed wrong class, (N,), of logits.
        x: Images (N, C, H, W).
        gradient: The gradient of the margin, (N, C, H, W).
        promised: (N,), the change along the gradient, in logits.
        threat: Gives the norm, eps and the bounds.
        draws: A CPU generator, for the move.
        standing: bool (N,), the members that an attack left correct.
    """
    if threat.eps == 0:
        return False
    low, high = threat.bounds
    signs = torch.randn(x.shape, generator=draws).sign().to(x)
    sizes = {"linf": 1.0, "l2": x[0].numel() ** 0.5, "l1": float(x[0].numel())}
    moved = (x + _TINY * threat.eps / sizes[threat.norm] * signs).clamp(low, high)
    rounded = low + ((x - low) / (high - low) * _LEVELS).round() / _LEVELS * (high - low)
    before = margin(served(x))
    jumps = []
    for images in (moved, rounded):
        near = (threat.distance(images, x) <= threat.eps / 2).to(x.device)
        expected = wide(gradient * (images - x)).flatten(1).sum(dim=1)
        change = (margin(served(images)) - before - expected).abs()
        jumps.append(too_many(near & ~(change <= _JUMP * promised), near, standing))
    return any(jumps)


class Boundary(NamedTuple):
    """Where the predicted class changes on each member's line.

    Attributes:
        found: bool (N,), whether it changes.
        images: (N, C, H, W), the nearer neighbor.
        classes: int64 (N, 2), the classes of the two neighbors; -1 if one has none.
        change: (N,), how far the difference of the two classes' scores changes between the two
            neighbors, in logits.
        whole: (N,), how far it changes over the whole line, in logits.
    """

    found: Tensor
    images: Tensor
    classes: Tensor
    change: Tensor
    whole: Tensor


def boundary_on_line(
    served: Served, x: Tensor, ends: Tensor, logits: Tensor, threat: ThreatModel
) -> Boundary:
    """Return where the class changes on the lines from `x` to `ends`, found by halving.

    The two neighbors are at most a sixteenth of eps apart, or 1 / 2^14 of the line.

    Args:
        served: The served logits.
        x: Images (N, C, H, W).
        ends: The other ends of the lines, (N, C, H, W).
        logits: The served logits of `x`, (N, classes).
        threat: Gives the norm and eps.
    """
    classes = _classes(logits)
    longest = float(threat.distance(ends, x).max())
    halvings = math.ceil(math.log2(max(longest / (_TINY * threat.eps), 1.0)))
    near = torch.zeros(len(x), dtype=widest(x.device), device=x.device)
    far = torch.ones_like(near)

    def on_the_line(share: Tensor) -> Tensor:
        share = share.to(x).reshape(-1, *[1] * (x.dim() - 1))
        return x + share * (ends - x)

    for _ in range(min(halvings, _HALVINGS)):
        middle = (near + far) / 2
        same = _classes(served(on_the_line(middle))) == classes
        near, far = torch.where(same, middle, near), torch.where(same, far, middle)
    images = on_the_line(near)
    before, after = served(images), served(on_the_line(far))
    # If members of a batch depend on each other, classes may have changed again.
    pair = torch.stack([_classes(before), _classes(after)], dim=1)
    found = (pair[:, 0] != pair[:, 1]) & (pair >= 0).all(dim=1)

    def change(first: Tensor, second: Tensor) -> Tensor:
        gaps = wide(first - second).to(pair.device).gather(1, pair.clamp(min=0))
        return gaps[:, 0] - gaps[:, 1]

    whole = change(logits, served(ends)).abs()
    return Boundary(found, images, pair, change(before, after), whole)


def _partners(classes: Tensor) -> Tensor:
    """Return for each member the next one of another class; itself if there is none."""
    count = len(classes)
    order = (torch.arange(count)[:, None] + torch.arange(count)) % count
    order = order.to(classes.device)
    other = classes[order] != classes[:, None]
    return order.gather(1, other.int().argmax(dim=1, keepdim=True)).squeeze(1)


def _classes(logits: Tensor) -> Tensor:
    """Return the predicted class of each row; -1 if the row is not a prediction."""
    return torch.where(is_prediction(logits), logits.nan_to_num().argmax(dim=1), -1)


def too_many(jumped: Tensor, measured: Tensor, standing: Tensor) -> bool:
    """Return whether too many members jump: of all, or of the standing ones, which make a gain.

    A single standing member is not enough.

    Args:
        jumped: bool (N,), the members that jump.
        measured: bool (N,), the members for which this was measured.
        standing: bool (N,), the members that an attack left correct.
    """
    share = int(jumped.sum()) > _MOST * int(measured.sum())
    of_standing, count = int((jumped & standing).sum()), int((measured & standing).sum())
    return share or of_standing > max(1.0, _MOST * count)
