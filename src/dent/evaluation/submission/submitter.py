"""Submit a batch as a user would, and in other ways that must give the same answer.

The answer that counts comes from a fresh copy, without gradients. A second copy, which has answered
the natural batch before and is queried with gradients as in attacks, must give the same answer. If
it does not, each possible cause is tried separately, and the worst answer counts. A randomized
defense is queried several times.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from dent.evaluation.records.plan import Kind, seed_of
from dent.evaluation.records.probe_answers import DISTANCE
from dent.evaluation.submission.fresh import Instance, Origin, reset
from dent.evaluation.submission.guard import Guard
from dent.evaluation.submission.stream import is_stream
from dent.evaluation.submission.submission import Submission, apart, submit

DRAWS: Final = 10
"""Number of submissions of a batch to a randomized defense, in addition to the first."""

EXPERIENCED: Final = "experienced"
WITH_GRADIENTS: Final = "with gradients"
NATURAL_AFTER: Final = "natural after"

Predictions = tuple[int | None, ...]


def submissions_per_batch(kind: Kind) -> int:
    """Return the number of submissions per batch in a unit, if all answers are equal.

    One counts, and one goes to the copy that has answered before. After an attack, the natural
    batch is submitted once more. A natural unit also submits the natural batch to prepare the copy.
    """
    return 3 if kind in ("natural", "attack") else 2


@dataclass(frozen=True)
class Answers:
    """The answers of a defense to one batch.

    Attributes:
        first: The answer of a fresh copy.
        views: Other predictions for the same batch and seed that differ from it: from a copy that
            has answered the natural batch before (`experienced`), or `with gradients`.
        apart: For each view, the distance between its logits and those of `first`
            (`submission.apart`), if it is more than rounding; 1 if only one of them is finite.
            `natural after` compares the natural batch before and after this one.
        draws: Predictions for the same batch under other seeds; empty if nothing is drawn at
            random.
    """

    first: Submission
    views: dict[str, Predictions] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)
    draws: tuple[Predictions, ...] = ()


class Submitter:
    """A submitter of versions of one batch to one defense.

    Args:
        name: Name of the defense.
        origin: The defense in its state before the batch.
        natural: The natural batch (N, C, H, W).
        guard: Detects writes to the static model.
        seed: Seed of all random numbers; the same for all versions of the batch.
        attacked: Number of members, from the first, that traces cover.
        public: Whether the attacker knows the seed. If so, only the answer under this seed counts,
            unless equal queries under it get different answers.
    """

    def __init__(
        self,
        name: str,
        origin: Origin,
        natural: Tensor,
        guard: Guard,
        seed: int,
        attacked: int,
        *,
        public: bool = False,
    ) -> None:
        self._public = public
        self._name, self._origin, self._guard = name, origin, guard
        self._natural, self._seed, self._attacked = natural, seed, attacked
        # A copy that has answered the natural batch, and its answer.
        self._experience: tuple[Origin, Submission] | None = None

    def submit(self, x: Tensor, *, natural_after: bool = False) -> Answers:
        """Submit a version (N, C, H, W) of the batch.

        Args:
            x: The images.
            natural_after: Whether to submit the natural batch once more after it. A stream gets no
                such batch.

        Raises:
            InputError: The defense wrote into the static model, or does not answer with logits.
        """
        fresh = self._origin.new(self._seed)
        draws_before = fresh.drawn()
        first = self._ask(fresh, x)
        drew = not self._public and (first.drew or draws_before != fresh.drawn())
        experienced, natural_answer = self._experienced()
        naturals = [natural_answer]
        distances: dict[str, float] = {}
        if natural_after and not is_stream(fresh.defense):
            naturals.append(self._once_more(fresh, self._natural))
            distances[NATURAL_AFTER] = self._since(natural_answer, naturals)
        elif x.equal(self._natural):
            naturals.append(first)
        experienced_copy = experienced.new()
        experienced_answer = self._once_more(experienced_copy, x, gradients=True)
        views: dict[str, Predictions] = {}
        if _distance(first, experienced_answer, naturals) > DISTANCE:
            for name, submission in self._possible_causes(x):
                distances[name] = _distance(first, submission, naturals)
                views[name] = submission.predictions
            # Equal queries got different answers: some random numbers cannot be seeded.
            drew = distances.pop("", 0.0) > DISTANCE or drew
            views.pop("", None)
        for instance in (fresh, experienced_copy):
            self._guard.check_copy(self._name, instance)
        return Answers(
            first=first,
            views={
                name: predictions
                for name, predictions in views.items()
                if not drew and distances[name] > DISTANCE and predictions != first.predictions
            },
            apart={
                name: value for name, value in distances.items() if not drew and value > DISTANCE
            },
            draws=tuple(self._draws(x)) if drew else (),
        )

    def _since(self, before: Submission, naturals: Sequence[Submission]) -> float:
        """Return the distance of the last natural answer from `before`, which had gradients.

        If only gradients make the difference, a fresh copy without them answers like the last one.
        """
        distance = _distance(before, naturals[-1], naturals)
        if distance <= DISTANCE or self._origin.missing is not None:
            return distance
        plain = self._ask(self._origin.new(self._seed), self._natural)
        return min(distance, _distance(plain, naturals[-1], naturals))

    def _experienced(self) -> tuple[Origin, Submission]:
        """Return a copy that has answered the natural batch with gradients, and its answer.

        A stream is in its state before the batch, because it has answered earlier batches.
        """
        if self._experience is None:
            instance = self._origin.new(self._seed)
            answer = self._ask(instance, self._natural, gradients=True)
            if is_stream(instance.defense):
                instance = self._origin.new(self._seed)
            self._guard.check_copy(self._name, instance)
            self._experience = Origin(instance.defense, instance.model), answer
        return self._experience

    def _possible_causes(self, x: Tensor) -> Iterator[tuple[str, Submission]]:
        """Yield an answer for each possible cause of a difference, and for no cause under ''."""
        yield "", self._ask(self._origin.new(self._seed), x)
        yield WITH_GRADIENTS, self._ask(self._origin.new(self._seed), x, gradients=True)
        if not is_stream(self._origin.defense):
            yield EXPERIENCED, self._once_more(self._experienced()[0].new(), x)

    def _draws(self, x: Tensor) -> Iterator[Predictions]:
        for draw in range(1, DRAWS + 1):
            seed = seed_of(self._seed, "draw", draw)
            yield submit(self._origin.new(seed).defense, x, seed=seed).predictions

    def _once_more(self, instance: Instance, x: Tensor, *, gradients: bool = False) -> Submission:
        reset(instance.defense)
        instance.reseed(self._seed)
        return self._ask(instance, x, gradients=gradients)

    def _ask(self, instance: Instance, x: Tensor, *, gradients: bool = False) -> Submission:
        if gradients:
            try:
                return submit(instance.defense, x, seed=self._seed, gradients=True)
            except (RuntimeError, TypeError, ValueError):
                pass  # a defense that computes in NumPy, for example: query without gradients
        return submit(instance.defense, x, seed=self._seed, attacked=self._attacked)


def _distance(first: Submission, second: Submission, naturals: Sequence[Submission]) -> float:
    distance = apart(first.logits, second.logits, *(natural.logits for natural in naturals))
    return 1.0 if distance is None else distance
