"""A few test queries about one batch. Most diagnostics are derived from the answers."""

from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dent.adaptation.random_state import seeded_generators
from dent.attacks import Defense, DynamicDefense, answer
from dent.attacks.base import isolated_random_state
from dent.attacks.losses import margin
from dent.attacks.protocol import as_queried, is_callable, name_of
from dent.attacks.querier import NoGradientError, derivatives_of
from dent.errors import InputError
from dent.evaluation.probe.defense_view import best_gradient
from dent.evaluation.records.plan import seed_of
from dent.evaluation.records.probe_answers import DISTANCE, changed
from dent.evaluation.records.schema import Comparison
from dent.evaluation.submission.fresh import Origin, footprint
from dent.evaluation.submission.shared import differ, marks_of
from dent.evaluation.submission.submission import Submission, apart, check_answer, submit
from dent.support.devices import wide
from dent.support.predictions import is_prediction

_FEW = 16
_TINY = 1e-12
_PAIR = 2
"""Number of members in the repeated query. Some defenses fail on a single one."""
_FEW_CALLS = 12
"""Number of queries to a copy that does not change."""
_CALLS = (True, True, False, True, False, False, True, True)
"""The order of calls (True), and of queries by `adapt` and `predict`, until one is as expected. The
answers of a defense that changes by itself hardly change in this order."""
_MANY_CALLS = 600
"""Number of queries to a copy that changes with its queries."""


class Probe:
    """Test queries to a defense about one batch. They cost little compared to an attack.

    The probe submits two whole batches, and a few members several times, each to a fresh copy. It
    also submits two members many times to one more copy, to test whether that copy changes.

    Args:
        origin: The defense before its first query.
        x: The first batch of the run, (N, C, H, W).
        y: The labels of the batch, (N,).
        bounds: Smallest and largest value of a pixel, for the noise.
        seed: Seed of all random draws.

    Attributes:
        members: The number of members in most queries.
        first: The copy that answered the whole batch.
        calls: Number of queries so far to the copy that is queried many times.
    """

    def __init__(
        self, origin: Origin, x: Tensor, y: Tensor, bounds: tuple[float, float], seed: int
    ) -> None:
        self._origin = origin
        self._x, self._y = x, y
        self._bounds = bounds
        self._seed = seed
        self.members = few_of(len(x))
        self.first = origin.new(seed_of(seed, 0))
        self._whole = submit(self.first.defense, x, seed=seed_of(seed, 0))
        self._few = self._ask(x[: self.members])
        self.calls = 0

    def check_classes(self, classes: int) -> None:
        """Refuse a defense that has fewer logits than the dataset has classes.

        Raises:
            InputError: It has fewer.
        """
        check_answer(self.first.defense, self._whole.logits, len(self._x), classes)

    def repeated(self) -> Comparison:
        """Compare the answers to the same few members under two seeds."""
        return self._compare(self._few, self._ask(self._x[: self.members], seed=1))

    def check_call(self) -> None:
        """Check that a call of the defense predicts as `adapt` and `predict` do.

        Attacks call a defense that can be called, and its score comes from the two methods.

        Raises:
            InputError: The call predicts otherwise, under the same seed.
        """
        few = self._x[: self.members]
        if all(
            self._called_otherwise()
            if is_call
            else not changed(self._compare(self._few, self._ask(few)))
            for is_call in _CALLS
        ):
            raise InputError(
                f"{name_of(self._origin.defense)} predicts otherwise if it is called: defense(x) "
                "must equal defense.predict(x, defense.adapt(x)), because attacks call it, and its "
                "score is that of the two methods. Define __call__ or forward by them, or leave it "
                "out"
            )

    def _called_otherwise(self) -> bool:
        """Return whether a call of a fresh copy gives other logits for a few members."""
        few, seed = self._x[: self.members], seed_of(self._seed, 0)
        defense = self._origin.new(seed).defense
        called: Any = defense
        if not isinstance(defense, DynamicDefense) or not is_callable(defense):
            return False
        with (
            isolated_random_state(seed, few.device),
            seeded_generators(defense, seed),
            torch.inference_mode(mode=False),
            torch.no_grad(),
        ):
            logits = called(as_queried(few))
        if not isinstance(logits, Tensor) or logits.shape != self._few.logits.shape:
            return False  # attacks say what is wrong with them
        distance = apart(self._few.logits, logits.float(), self._whole.logits)
        return distance is None or distance > DISTANCE

    def again(self) -> tuple[Comparison, float | None]:
        """Compare the answers of a fresh copy and of one that has answered many queries.

        Returns:
            The comparison of the answers to the same members and seed, and the largest distance
            between the two gradients of a member, relative to the length of the first one. The
            distance is None if neither copy has a gradient, and 1 if only one has.
        """
        seed, few = seed_of(self._seed, 0), self._x[: self.members]
        old = self._origin.new(seed)
        marks: list[int] = []
        while self.calls < (_FEW_CALLS if len(set(marks)) == 1 else _MANY_CALLS):
            submit(old.defense, self._x[:_PAIR], seed=seed)
            self.calls += 1
            if self.calls in (_FEW_CALLS // 2, _FEW_CALLS):
                marks.append(footprint(old.defense))
        # Ask twice: a defense that alternates may give the first answer again by chance.
        old.reseed(seed)
        submissions = [submit(old.defense, few, seed=seed)]
        old.reseed(seed)
        submissions.append(submit(old.defense, few, seed=seed))
        old.reseed(seed)
        before, after = (
            self._gradient(instance.defense) for instance in (self._origin.new(seed), old)
        )
        distance: float | None = None
        if before is not None and after is not None:
            distance = _turned(before, after)
        elif (before is None) != (after is None):
            distance = 1.0
        comparisons = [self._compare(self._few, submission) for submission in submissions]
        unlike = [comparison for comparison in comparisons if comparison.distance is None]
        return max(
            unlike or comparisons, key=lambda comparison: comparison.distance or 0.0
        ), distance

    def shares(self) -> bool | None:
        """Return whether a copy that is never queried changes when others answer new images.

        Returns:
            None if the defense cannot be copied.
        """
        if self._origin.missing is not None:
            return None
        few, marks = self._x[: self.members], []
        # The first query may fill honest caches, and the second one moves honest counters.
        for images in (few, few, few.flip(-1)):
            self._ask(images)
            marks.append(marks_of(self._origin.defense))
        return differ(*marks)

    def _gradient(self, defense: Defense) -> Tensor | None:
        """Return the gradient of a few members' margins; None if there is none.

        Values that are not finite are 0.
        """
        x, y = self._x[: self.members], self._y[: self.members]
        with (
            isolated_random_state(seed_of(self._seed, 0), x.device),
            torch.inference_mode(mode=False),
            torch.enable_grad(),
        ):
            leaf = x.detach().clone().requires_grad_()
            _, view = best_gradient(defense)
            logits = view(as_queried(leaf))
            if not logits.requires_grad:
                return None
            gradient: Tensor | None = None
            with suppress(NoGradientError), derivatives_of(defense):
                gradient = torch.autograd.grad(margin(logits, y).sum(), leaf, allow_unused=True)[0]
        return None if gradient is None else gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def alone(self) -> Comparison | None:
        """Compare the answers to a few members with and without the rest of their batch."""
        return self._compare(self._whole, self._few) if self.members < len(self._x) else None

    def strangers(self) -> Comparison | None:
        """Compare the answers to a few members in their batch, and in a batch filled with noise."""
        if self.members == len(self._x):
            return None
        low, high = self._bounds
        draws = torch.Generator().manual_seed(seed_of(self._seed, "noise"))
        noise = torch.rand(self._x[self.members :].shape, generator=draws).round().to(self._x)
        mixed = torch.cat([self._x[: self.members], low + (high - low) * noise])
        return self._compare(self._whole, self._ask(mixed), self.members)

    def permuted(self) -> Comparison | None:
        """Compare the answers to a few members in order and in reverse order."""
        if self.members < 2:
            return None
        turned = self._ask(self._x[: self.members].flip(0))
        return self._compare(self._few, turned, turn=True)

    def probabilities(self) -> int:
        """Count the rows of the whole batch that are probabilities rather than logits."""
        rows = wide(self._whole.logits)
        inside = ((rows >= 0) & (rows <= 1)).all(dim=1)
        return int((inside & ((rows.sum(dim=1) - 1).abs() < _rounding(rows))).sum())

    def gradients(self) -> tuple[int, int | None]:
        """Count the members predicted correctly, and those of them without an input gradient.

        A gradient that is zero or not finite does not count. The second count is None if the answer
        is not a differentiable function of the input.
        """
        x, y = self._x[: self.members], self._y[: self.members]
        defense = self._origin.new(seed_of(self._seed, 0)).defense
        with isolated_random_state(seed_of(self._seed, 0), x.device), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            logits = answer(defense, leaf)
            correct = logits.detach().argmax(dim=1) == y
            if not logits.requires_grad:
                return int(correct.sum()), None
            loss = F.cross_entropy(logits.float(), y, reduction="sum")
            gradient: Tensor | None = None
            with suppress(NoGradientError), derivatives_of(defense):
                (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
        if gradient is None:  # the logits depend on the weights, not on the input
            return int(correct.sum()), None
        rows = gradient.flatten(1)
        useless = (rows == 0).all(dim=1) | ~rows.isfinite().all(dim=1)
        return int(correct.sum()), int((useless & correct).sum())

    def _ask(self, x: Tensor, seed: int = 0) -> Submission:
        seed = seed_of(self._seed, seed)
        return submit(self._origin.new(seed).defense, x, seed=seed)

    def _compare(
        self,
        first: Submission,
        second: Submission,
        members: int | None = None,
        *,
        turn: bool = False,
    ) -> Comparison:
        """Compare the answers to the first members of two batches; `turn` reverses the second."""
        count = members or min(len(first.predictions), len(second.predictions))
        before, after = first.logits[:count], second.logits[:count]
        if turn:
            after = after.flip(0)
        return Comparison(
            members=count,
            changed=int((_classes(before) != _classes(after)).sum()),
            distance=apart(before, after, self._whole.logits),
        )


def _rounding(rows: Tensor) -> Tensor:
    """Return for each row how far the sum of probabilities may be from 1.

    A row whose values all fit a narrow floating-point type was probably rounded to it.
    """
    largest = torch.full(rows.shape[:1], 1e-4, dtype=rows.dtype, device=rows.device)
    for dtype in (torch.float16, torch.bfloat16):
        fits = (rows.to(dtype).to(rows.dtype) == rows).all(dim=1)
        largest[fits] = 4 * torch.finfo(dtype).eps
    return largest


def few_of(size: int) -> int:
    """Return the number of members of a batch of this size that are queried without the others."""
    return max(1, min(size // 2, _FEW))


def _turned(before: Tensor, after: Tensor) -> float:
    """Return the largest distance of two gradients of a member, relative to the first one's length.

    A length below the median counts as the median, because a shorter gradient may be only rounding.
    """
    rows, others = (wide(gradient).flatten(1) for gradient in (before, after))
    size = rows.norm(dim=1)
    size = size.clamp(min=max(float(size.median()), _TINY))
    return float(((rows - others).norm(dim=1) / size).amax())


def _classes(logits: Tensor) -> Tensor:
    """Return the predicted class of each row; -1 if the row is not a prediction."""
    return torch.where(is_prediction(logits), logits.argmax(dim=1), -1)
