"""RayS (Chen & Gu, KDD 2020): an attack that uses only decisions, on a whole batch.

For every member it seeks, among the corners of a cube, the direction d in which the answer turns
wrong soonest:

    r(d) = the least r with argmax f(x + r·d) ≠ y,    d ∈ {−1, 1}ⁿ

A first try is all ones. Then blocks of d flip their sign: halves, quarters, eighths, and so on. One
query at the best r so far says whether a flip can be any better; if so, bisection finds its r. It
sees classes, no logits and no gradients, so nothing that hides these stops it.

foolbox's HopSkipJump does not fit a batch that answers as one: it assumes that who was wrong once
stays wrong there, whatever the others do (it asserts it, and loops until it holds). Here every
query is the whole batch, and each member is at its own step of its own search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from dent.attacks.adaptive.standing import Parting, rows_of
from dent.attacks.base import Attack, Outcome
from dent.attacks.best import Best
from dent.attacks.checks import check_counts, effort
from dent.attacks.querier import Queries

if TYPE_CHECKING:
    from dent.attacks.querier import Querier
    from dent.threat import Norm, ThreatModel

_TOLERANCE = 1e-3  # of the radius that the threat model leaves a corner


@final
@dataclass(frozen=True)
class RayS(Attack):
    """RayS with a number of queries.

    Queries leave the threat model while they search, as every search for the least perturbation
    does; what is found beyond it counts for nothing. In l2 and l1 the corners are those of the
    cube inside the ball, which is a small part of it there: the attack is made for l-inf.
    """

    iterations: int = effort(1000)
    """Queries of the whole batch. The authors use up to 10,000."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_counts(1, iterations=self.iterations)
        super().__post_init__()

    @property
    def registered(self) -> str:
        """`rays`."""
        return "rays"

    def queries(self, n_classes: int, norm: Norm = "linf") -> Queries:
        """Return a pass for the natural images, the search, and three submissions."""
        del n_classes, norm
        return Queries(self.iterations + 4, 0)

    def longer(self, norm: Norm = "linf") -> None:
        """Return None: it follows no gradient."""
        del norm

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        """Search until done, or until every member is fooled inside the threat model."""
        del seed  # nothing is random
        best, parting = Best(target), Parting(target)
        best.offer_served(target.natural)
        search = _Search(target.natural, threat, best.fooled)
        for _ in range(self.iterations):
            if bool(search.done().all()):
                break
            part = parting.of(search.done())
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
        """The members that are fooled inside, or have no block left to flip, bool (N,)."""
        exhausted = 2**self._stage > 2 * self._direction.shape[1]
        done: Tensor = self._fooled | exhausted | (self._radius <= self._inside)
        return done

    def ask(self) -> Tensor:
        """Return the next batch to submit."""
        middle = (self._below + self._above) / 2
        probe = self._radius.clamp(max=self._span)
        return self._at(torch.where(self._bisecting, middle, probe), self._tried)

    def tell(self, wrong: Tensor) -> None:
        """Update the search with the members that were wrong."""
        begins = ~self._bisecting & wrong
        above = torch.where(begins, self._radius.clamp(max=self._span), self._above)
        below = torch.where(begins, 0.0, self._below)
        middle = (self._below + self._above) / 2
        self._above = torch.where(self._bisecting & wrong, middle, above)
        self._below = torch.where(self._bisecting & ~wrong, middle, below)
        narrow = self._above - self._below <= _TOLERANCE * self._inside
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
        finished = block >= 2**self._stage
        self._stage = self._stage + (moving & finished)
        self._block = torch.where(finished, 0, block)
        pixels = torch.arange(self._direction.shape[1], device=block.device)
        length = (len(pixels) / 2.0**self._stage).ceil().long().clamp(min=1)
        start = (self._block * length).unsqueeze(1)
        inside = (pixels >= start) & (pixels < start + length.unsqueeze(1))
        flipped = torch.where(inside, -self._direction, self._direction)
        self._tried = torch.where(moving.unsqueeze(1), flipped, self._tried)

    def _at(self, radius: Tensor, direction: Tensor) -> Tensor:
        moved = self._natural.flatten(1) + radius.unsqueeze(1) * direction
        return moved.clamp(*self._bounds).reshape(self._natural.shape)
