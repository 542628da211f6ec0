"""Queries of an attack to a defense, with a count of their passes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dent.attacks.history import Recorder
from dent.attacks.protocol import (
    Defense,
    as_queried,
    is_batch_dependent,
    name_of,
    query,
    taking,
)
from dent.errors import InputError
from dent.outputs import advice, described
from dent.support.plural import counted
from dent.support.predictions import bounded, is_prediction

if TYPE_CHECKING:
    from dent.threat import ThreatModel

OnPass = Callable[[int, int], None]

View = Callable[[Tensor], Tensor]
"""A function from a batch (N, C, H, W) to logits (N, classes): a defense or a stand-in for it. A
view of an image is something else (`dent.adaptation.views`)."""


class NoGradientError(InputError):
    """An attack needs a gradient to the input, and there is none."""


_NO_DERIVATIVE: Final = "torch::autograd::NotImplemented"
"""Name of the graph node of an operation without a derivative, such as `//`."""


@contextmanager
def derivatives_of(defense: object) -> Iterator[None]:
    """Take gradients in this context.

    Raises:
        NoGradientError: The defense uses an operation without a derivative, such as `//`.
    """
    try:
        yield
    except RuntimeError as error:
        missing = re.search(r"derivative for (\S+) is not implemented", str(error))
        if missing is None:
            raise
        raise NoGradientError(
            f"{name_of(defense)} uses {missing[1]}, which has no derivative; use an attack without "
            "gradients, such as 'square', or 'adaptive-stop-gradient:unmask=true'"
        ) from error


class Queries(NamedTuple):
    """Numbers of passes, each over one batch.

    Attributes:
        forwards: Number of batches queried. For a dynamic defense, each includes its adaptation.
        backwards: Number of gradients taken to the input of a query.
    """

    forwards: int
    backwards: int

    def __add__(self, other: object) -> Queries:
        if not isinstance(other, Queries):
            return NotImplemented
        return Queries(self.forwards + other.forwards, self.backwards + other.backwards)

    def times(self, count: int) -> Queries:
        """Return the passes of `count` repetitions."""
        return Queries(self.forwards * count, self.backwards * count)


@dataclass(frozen=True)
class QueriedBatch:
    """One whole batch inside the threat model, with the result of its query.

    Attributes:
        images: (N, C, H, W).
        fooled: bool (N,), True for a wrong prediction or none.
        loss: Mean cross-entropy, in nats, which breaks ties.
    """

    images: Tensor
    fooled: Tensor
    loss: float

    def beats(self, other: QueriedBatch | None) -> bool:
        """Return whether this batch fools more members, or as many at a higher loss."""
        if other is None:
            return True
        fooled, other_fooled = int(self.fooled.sum()), int(other.fooled.sum())
        return fooled > other_fooled or (fooled == other_fooled and self.loss > other.loss)


@dataclass
class Counts:
    """What an attack on one batch has taken so far; see the attributes of `Querier`."""

    done: Queries
    non_finite: int
    gradients: Tensor
    zero_by_member: Tensor


class Querier:
    """A defense as an attack sees it: it takes queries and counts their cost.

    It counts forward and backward passes and reports progress. It replaces rows of logits that are
    not predictions (`is_prediction`) by finite logits with a wrong prediction, so that an attack
    neither crashes on them nor counts them as correct. In all others, excluded classes get finite
    logits far below the rest. For a batch-dependent defense it keeps the worst whole batch of all
    queries. There, predictions hold only for a batch as a whole, so members of different batches
    cannot be combined.

    Attributes:
        defense: The defense, for attacks that need more of it than its logits.
        batch_dependent: Whether the defense declares that it is batch-dependent.
        members: Indices of the members in use, int64 (N,); None for all.
        natural: The natural images, (N, C, H, W).
        labels: int64 (N,).
        classes: Number of classes, None before the first query.
        shared_seed: Seed of computations that several attacks on the batch share.
        counts: What the attack has taken so far.
        worst: For a batch-dependent defense, the worst queried batch inside the threat model.
        recorder: Records the progress of the attack.
    """

    def __init__(
        self,
        defense: Defense,
        natural: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        *,
        plan: Callable[[int], Queries],
        progress: OnPass | None = None,
        shared_seed: int = 0,
    ) -> None:
        """Wrap a defense for an attack on one batch.

        Args:
            defense: The defense to attack.
            natural: Images (N, C, H, W) in the threat model's bounds.
            labels: int64 (N,).
            threat: The threat model. Only batches inside it may be kept as the worst.
            plan: A function from the number of classes to the planned passes, for `progress`.
            progress: Called with (passes done, passes planned).
            shared_seed: Seed of computations that several attacks on the batch share.
        """
        self.defense = defense
        self.batch_dependent = is_batch_dependent(defense)
        self.members: Tensor | None = None
        self.natural = natural
        self.labels = labels
        self.classes: int | None = None
        self.shared_seed = shared_seed
        self.counts = Counts(Queries(0, 0), 0, torch.zeros_like(labels), torch.zeros_like(labels))
        self.worst: QueriedBatch | None = None
        self.recorder = Recorder(labels, batch_dependent=self.batch_dependent)
        self._threat = threat
        self._plan = plan
        self._planned = 0
        self._progress = progress

    @property
    def done(self) -> Queries:
        """Number of passes so far."""
        return self.counts.done

    @property
    def non_finite(self) -> int:
        """Number of rows of logits so far that were no prediction."""
        return self.counts.non_finite

    @property
    def gradients(self) -> Tensor:
        """Number of gradients taken so far for each member, int64 (N,)."""
        return self.counts.gradients

    @property
    def zero_by_member(self) -> Tensor:
        """Number of those that were exactly zero, int64 (N,)."""
        return self.counts.zero_by_member

    def __call__(
        self,
        images: Tensor,
        asked: Tensor | None = None,
        view: View | None = None,
        members: Tensor | None = None,
    ) -> Tensor:
        """Query a batch and return finite logits (N, classes), with a graph to `images`.

        There is no graph if gradients are disabled, or if `images` does not require them.

        Args:
            images: (N, C, H, W); row i must belong to member i.
            asked: The rows, int64 (M,), whose gradients will be used; all by default.
            view: The view to query instead of the defense. Its batches are not kept as the worst.
            members: The members of these rows, int64 (N,), if they are not the whole batch. Only
                for a batch-independent defense.
        """
        logits, predicted = self.submit(images, asked, view, members)
        labels = self.labels if members is None else self.labels[members]
        logits = _wrong_unless(predicted, logits, labels)
        self._record(images.detach(), logits, members, view)
        if self.batch_dependent and view is None:
            self._remember(images.detach(), logits.detach())
        return logits

    def submit(
        self,
        images: Tensor,
        asked: Tensor | None = None,
        view: View | None = None,
        members: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Query any rows as one batch; return float32 logits, and which rows are predictions.

        These rows are finite: excluded classes have a logit far below all others.

        The arguments are those of `__call__`. The defense or the view gets a copy of the images,
        so it may write into it.

        Raises:
            InputError: If the result is not logits (N, classes), has too few classes for the
                labels, or has another number of classes than before.
            NoGradientError: If the attack needs a gradient to the images and there is none.
        """
        wants_gradient = torch.is_grad_enabled() and images.requires_grad
        images = as_queried(images)
        if wants_gradient:
            images.register_hook(partial(self._on_backward, asked, members))
        with taking(self.defense, images):
            logits = query(self.defense, images) if view is None else view(images)
        self._check_logits(logits, len(images))
        if wants_gradient and not _depends_on(logits, images):
            raise NoGradientError(
                f"{name_of(self.defense)} returned logits without a gradient to its "
                "input; use an attack without gradients, such as 'square'"
            )
        logits = logits.float()
        predicted = is_prediction(logits)
        self.counts.non_finite += int((~predicted).sum())
        self.count(Queries(1, 0))
        return bounded(logits), predicted

    def finish(self) -> None:
        """Report all planned passes as done. An attack stops early if all members are fooled."""
        if self._progress is not None:
            self._progress(self._planned, self._planned)

    def took(self, gradient: Tensor, of: Tensor) -> None:
        """Count a computed gradient.

        Args:
            gradient: (M, ...).
            of: The members of these rows, int64 (M,).
        """
        self.counts.gradients.index_add_(0, of, torch.ones_like(of))
        zero = gradient.flatten(1).count_nonzero(dim=1) == 0
        self.counts.zero_by_member.index_add_(0, of, zero.to(of))

    def _on_backward(
        self, asked: Tensor | None, members: Tensor | None, gradient: Tensor
    ) -> Tensor:
        self.count(Queries(0, 1))
        gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        rows = gradient if asked is None else gradient[asked]
        everybody = torch.arange(len(self.labels), device=self.labels.device)
        owners = everybody if members is None else members
        owners = owners if asked is None else owners[asked]
        if len(owners) == len(rows):
            self.took(rows, owners)
            self.recorder.took(rows)
        return gradient

    def count(self, passes: Queries) -> None:
        """Add passes to the count, such as those that an attack made without this object."""
        self.counts.done = self.done + passes
        if self._progress is not None:
            self._progress(min(sum(self.done), self._planned), self._planned)

    def _record(
        self, images: Tensor, logits: Tensor, members: Tensor | None, view: View | None
    ) -> None:
        differentiable = logits.requires_grad
        logits = logits.detach()
        wrong = self.recorder.answered(logits, members)
        if view is None or view is self.defense:
            natural = self.natural if members is None else self.natural[members]
            if bool(wrong.any()):  # some attacks query images outside the threat model
                wrong = wrong & (self._threat.check(images, natural) <= 0).to(wrong.device)
            self.recorder.broke(wrong, members, along=differentiable)
        else:
            self.recorder.broke_stand_in(wrong, members, along=differentiable)

    def _remember(self, images: Tensor, logits: Tensor) -> None:
        fooled = logits.argmax(dim=1) != self.labels
        loss = float(F.cross_entropy(logits, self.labels))
        served = QueriedBatch(images, fooled, loss)
        if served.beats(self.worst) and not bool(self._threat.check(images, self.natural).any()):
            self.worst = QueriedBatch(images.clone(), fooled, loss)

    def _check_logits(self, logits: object, rows: int) -> None:
        name = name_of(self.defense)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != rows:
            raise InputError(
                f"{name} must return logits ({rows}, classes), got {described(logits)}."
                f"{advice(logits)}"
            )
        classes = logits.shape[1]
        if self.classes is None:
            largest = int(self.labels.max())
            if classes < 2 or largest >= classes:
                raise InputError(
                    f"{name} returned {counted(classes, 'class')}; the attack needs at least "
                    "2, and the "
                    f"labels go up to {largest}"
                )
            self.classes = classes
            if self._progress is not None:
                self._planned = sum(self._plan(classes))
        elif classes != self.classes:
            raise InputError(f"{name} returned {self.classes} classes before and {classes} now")


def finite_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return finite float32 logits. A row that is not a prediction becomes a wrong one.

    Args:
        logits: (N, classes).
        labels: int64 (N,).
    """
    logits = logits.float()
    return _wrong_unless(is_prediction(logits), bounded(logits), labels)


def _wrong_unless(predicted: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    wrong = torch.zeros_like(logits).scatter(1, labels.unsqueeze(1), -1.0)
    return torch.where(predicted.unsqueeze(1), logits, wrong)


def _depends_on(logits: Tensor, images: Tensor) -> bool:
    """Return whether the graph of the logits reaches the images, not only trainable weights."""
    goal, start = images.grad_fn, logits.grad_fn
    pending, seen = [start], {start}
    while pending:
        node = pending.pop()
        if node is goal:
            return True
        if node is not None and node.name() == _NO_DERIVATIVE:
            continue
        # Push the first input of an operation last, so that it is followed first.
        for following, _ in reversed(() if node is None else node.next_functions):
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return False
