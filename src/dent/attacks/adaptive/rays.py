"""RayS (Chen & Gu, KDD 2020): an attack that only uses predicted classes, on a whole batch.

For every member it searches the corners of a cube for the direction d in which the prediction
becomes wrong at the smallest radius:

    r(d) = the smallest r with argmax f(x + r·d) ≠ y,    d ∈ {−1, 1}ⁿ

The first direction is all ones. Then blocks of d flip their sign: halves, quarters, eighths, and so
on. One query at the best r so far tells whether a flip can be better. If so, bisection finds its r.
The attack uses neither logits nor gradients, so it still works if a defense hides them.

HopSkipJump of foolbox does not fit a batch-dependent defense. It assumes that a member that was
wrong once stays wrong there, whatever the other members are (it asserts this, and loops until it
holds). Here every query of such a defense is the whole batch, and each member is at its own step of
its own search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from dent.attacks.adaptive.standing import MemberSelection, rows_of
from dent.attacks.base import Attack, Outcome
from dent.attacks.best import Best
from dent.attacks.checks import effort
from dent.attacks.querier import Queries
from dent.support.checks import check_counts

if TYPE_CHECKING:
    from dent.attacks.querier import Querier
    from dent.threat import Norm, ThreatModel

_TOLERANCE = 1e-3  # share of the radius at which a corner leaves the threat model


@final
@dataclass(frozen=True)
class RayS(Attack):
    """RayS with a limited number of queries.

    During the search, queries leave the threat model, as in every search for the smallest
    perturbation. Wrong predictions outside do not count. The attack is made for l-inf. In l2 and
    l1, it only searches the corners of the cube inside the ball, which is a small part of the ball.
    """

    iterations: int = effort(1000)
    """Largest number of queries of the search. The authors use up to 10,000."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_counts(1, iterations=self.iterations)
        super().__post_init__()

    @property
    def registered(self) -> str:
        """`rays`."""
        return "rays"

    def queries(self, num_classes: int, norm: Norm = "linf") -> Queries:
        """Return one pass for the natural images, those of the search, and three at the end."""
        del num_classes, norm
        return Queries(self.iterations + 4, 0)

    def longer(self, norm: Norm = "linf") -> None:
        """Return None, because the attack has no gradient iterations."""
        del norm

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        """Search until every member is fooled inside the threat model, or has no flip left."""
        del seed  # the attack is deterministic
        best, selection = Best(target), MemberSelection(target)
        best.offer_served(target.natural)
        search = _Search(target.natural, threat, best.fooled)
        for _ in range(self.iterations):
            if bool(search.done().all()):
                break
            part = selection.without(search.done())
            wrong = part(rows_of(part, search.ask())).argmax(dim=1) != part.labels
            if part.members is not None:
                wrong = torch.zeros_like(best.fooled).index_copy(0, part.members, wrong)
            search.tell(wrong)
        best.offer_served(threat.project(search.found(), target.natural))
        return best.outcome()


class _Search:
    """The state of each member's search: probing a flip at the best radius, or bisecting."""

    def __init__(self, natural: Tensor, threat: ThreatModel, fooled: Tensor) -> None:
        size, pixels = len(natural), natural[0].numel()
        low, high = threat.bounds
        root = {"linf": 1.0, "l2": pixels**0.5, "l1": float(pixels)}[threat.norm]
        self._natural = natural
        self._bounds = threat.bounds
        self._inside = threat.eps / root
        self._span = high - low
        self._fooled = fooled
        self._direction = natural.new_ones(size, pixels)
        self._tried = self._direction.clone()
        self._radius = natural.new_full((size,), torch.inf)
        self._bisecting = torch.zeros_like(fooled)
        self._below = natural.new_zeros(size)
        self._above = natural.new_full((size,), self._span)
        self._stage = torch.zeros(size, dtype=torch.int64, device=natural.device)
        self._block = torch.full_like(self._stage, -1)  # the first try flips nothing

    def done(self) -> Tensor:
        """Return bool (N,): fooled inside the threat model, or without a block left to flip."""
        exhausted = 2**self._stage > 2 * self._direction.shape[1]
        done: Tensor = self._fooled | exhausted | (self._radius <= self._inside)
        return done

    def ask(self) -> Tensor:
        """Return the next batch to query, (N, C, H, W)."""
        middle = (self._below + self._above) / 2
        probe = self._radius.clamp(max=self._span)
        return self._at(torch.where(self._bisecting, middle, probe), self._tried)

    def tell(self, wrong: Tensor) -> None:
        """Update the search with the members that were wrong, bool (N,)."""
        begins = ~self._bisecting & wrong
        above = torch.where(begins, self._radius.clamp(max=self._span), self._above)
        below = torch.where(begins, 0.0, self._below)
        middle = (self._below + self._above) / 2
        self._above = torch.where(self._bisecting & wrong, middle, above)
        self._below = torch.where(self._bisecting & ~wrong, middle, below)
        middle = (self._below + self._above) / 2
        # With a small tolerance, no float32 may be left between the two.
        narrow = (
            (self._above - self._below <= _TOLERANCE * self._inside)
            | (middle <= self._below)
            | (middle >= self._above)
        )
        ends = self._bisecting & narrow
        self._radius = torch.where(ends, self._above, self._radius)
        self._direction = torch.where(ends.unsqueeze(1), self._tried, self._direction)
        self._bisecting = (self._bisecting & ~narrow) | begins
        self._flip_next(~self._bisecting)

    def found(self) -> Tensor:
        """Return each member moved in its best direction, within the threat model."""
        return self._at(self._radius.clamp(max=self._inside), self._direction)

    def _flip_next(self, moving: Tensor) -> None:
        block = self._block + moving
        pixels = torch.arange(self._direction.shape[1], device=block.device)
        # Blocks are rounded up, so the last blocks of a stage may begin beyond the image.
        beyond = block * self._length(len(pixels)) >= len(pixels)
        finished = (block >= 2**self._stage) | beyond
        self._stage = self._stage + (moving & finished)
        self._block = torch.where(finished, 0, block)
        length = self._length(len(pixels))
        start = (self._block * length).unsqueeze(1)
        inside = (pixels >= start) & (pixels < start + length.unsqueeze(1))
        flipped = torch.where(inside, -self._direction, self._direction)
        self._tried = torch.where(moving.unsqueeze(1), flipped, self._tried)

    def _length(self, pixels: int) -> Tensor:
        """Return the number of pixels in a block of each member's stage, int64 (N,)."""
        return (pixels / 2.0**self._stage).ceil().long().clamp(min=1)

    def _at(self, radius: Tensor, direction: Tensor) -> Tensor:
        moved = self._natural.flatten(1) + radius.unsqueeze(1) * direction
        return moved.clamp(*self._bounds).reshape(self._natural.shape)
