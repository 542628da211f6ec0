"""Submit a batch as a user would, and in the other ways in which an answer must be the same.

What counts is asked of a copy that has answered nothing, without gradients. A copy that was asked
about the natural batch before, and asked with gradients as attacks ask, must answer alike; where it
does not, that answer is kept as well, and the worse one counts. An answer that is drawn at random
is asked for several times.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from dent.evaluation.records.plan import Kind, seed_of
from dent.evaluation.records.readings import DISTANCE
from dent.evaluation.submission.fresh import Instance, Origin
from dent.evaluation.submission.guard import Guard
from dent.evaluation.submission.stream import is_stream
from dent.evaluation.submission.submission import Submission, apart, submit

DRAWS: Final = 10
"""Submissions of a batch whose answers are drawn at random, beside the first."""
CHOOSING: Final = 5
"""The first so many choose the worst submission; the others score it."""

EXPERIENCED: Final = "experienced"
WITH_GRADIENTS: Final = "with gradients"
NATURAL_AFTER: Final = "natural after"

Predictions = tuple[int | None, ...]


def submissions_per_batch(kind: Kind) -> int:
    """How many answers of a batch a unit asks for, where all are alike.

    The one that counts and one of an experienced copy; after an attack the natural batch once more,
    and in the unit of the natural batch what makes a copy experienced.
    """
    return 3 if kind in ("natural", "attack") else 2


@dataclass(frozen=True)
class Answers:
    """What a defense answered to one batch.

    Attributes:
        first: The first answer of a copy that had answered nothing.
        views: Other answers to the same batch and seed, where they differ from it: by a copy that
            had answered the natural batch before (`experienced`), or `with gradients`.
        apart: By view, how far its logits lie from those served, as `serving.apart`, where that is
            more than arithmetic; 1 where only one of them is a prediction. `natural after` compares
            the natural batch before and after this one.
        draws: Answers to the same batch under other seeds; none where nothing is drawn at random.
    """

    first: Submission
    views: dict[str, Predictions] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)
    draws: tuple[Predictions, ...] = ()


class Submitter:
    """Submits batches to one defense in the state in which one batch finds it.

    Args:
        name: Of the defense.
        origin: The defense as it was before anybody asked it anything.
        natural: The natural batch (N, C, H, W).
        guard: Notices writes to the static model.
        seed: Of everything random; the same for whatever is submitted in this batch's place.
        attacked: How many members, from the first, traces are over.
    """

    def __init__(
        self, name: str, origin: Origin, natural: Tensor, guard: Guard, seed: int, attacked: int
    ) -> None:
        self._name, self._origin, self._guard = name, origin, guard
        self._natural, self._seed, self._attacked = natural, seed, attacked
        # One that has answered the natural batch, and what it said.
        self._known: tuple[Origin, Submission] | None = None

    def submit(self, x: Tensor, *, natural_after: bool = False) -> Answers:
        """Submit a batch (N, C, H, W) in the place of its natural one.

        Args:
            x: The batch.
            natural_after: Ask about the natural batch once more after it.

        Raises:
            InputError: The defense wrote into the static model, or does not answer with logits.
        """
        fresh = self._origin.new(self._seed)
        kept = fresh.drawn()
        first = self._ask(fresh, x)
        drew = first.drew or kept != fresh.drawn()
        known, before = self._experienced()
        far: dict[str, float] = {}
        if natural_after and not is_stream(fresh.defense):
            far[NATURAL_AFTER] = _far(before, self._once_more(fresh, self._natural))
        other = known.new()
        seen = self._once_more(other, x, gradients=True)
        views: dict[str, Predictions] = {}
        if _far(first, seen) > DISTANCE:
            for name, found in self._apart(x):
                far[name] = _far(first, found)
                views[name] = found.predictions
            # Alike questions that are answered otherwise: something draws that cannot be seeded.
            drew = far.pop("", 0.0) > DISTANCE or drew
            views.pop("", None)
        for asked in (fresh, other):
            self._guard.check_copy(self._name, asked)
        return Answers(
            first=first,
            views={
                name: found
                for name, found in views.items()
                if not drew and far[name] > DISTANCE and found != first.predictions
            },
            apart={name: value for name, value in far.items() if not drew and value > DISTANCE},
            draws=tuple(self._draws(x)) if drew else (),
        )

    def _experienced(self) -> tuple[Origin, Submission]:
        """One that has answered the natural batch, asked as attacks ask, and what it said.

        A stream is as this batch finds it: it has answered the batches before.
        """
        if self._known is None:
            asked = self._origin.new(self._seed)
            said = self._ask(asked, self._natural, gradients=True)
            if is_stream(asked.defense):
                asked = self._origin.new(self._seed)
            self._guard.check_copy(self._name, asked)
            self._known = Origin(asked.defense, asked.model), said
        return self._known

    def _apart(self, x: Tensor) -> Iterator[tuple[str, Submission]]:
        """What may have made the difference, one thing at a time; nothing at all under ''."""
        yield "", self._ask(self._origin.new(self._seed), x)
        yield WITH_GRADIENTS, self._ask(self._origin.new(self._seed), x, gradients=True)
        if not is_stream(self._origin.defense):
            yield EXPERIENCED, self._once_more(self._experienced()[0].new(), x)

    def _draws(self, x: Tensor) -> Iterator[Predictions]:
        for draw in range(1, DRAWS + 1):
            seed = seed_of(self._seed, "draw", draw)
            yield submit(self._origin.new(seed).defense, x, seed=seed).predictions

    def _once_more(self, asked: Instance, x: Tensor, *, gradients: bool = False) -> Submission:
        asked.forget()
        asked.reseed(self._seed)
        return self._ask(asked, x, gradients=gradients)

    def _ask(self, asked: Instance, x: Tensor, *, gradients: bool = False) -> Submission:
        if gradients:
            try:
                return submit(asked.defense, x, seed=self._seed, gradients=True)
            except (RuntimeError, TypeError, ValueError):
                pass  # as of a defense that computes in NumPy: ask without
        return submit(asked.defense, x, seed=self._seed, attacked=self._attacked)


def _far(one: Submission, other: Submission) -> float:
    distance = apart(one.logits, other.logits)
    return 1.0 if distance is None else distance
