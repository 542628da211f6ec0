"""What came of one run of the page: everything shown, as a value."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from dent.evaluation.submission.submission import Submission
from dent.playground.images import Picked
from dent.playground.setup import Rung, Setup
from dent.playground.watch import Look

CourseName = Literal["static"] | Rung
"""`static` attacks the static model; the others are about the defense."""
Who = Literal["static", "defense"]
WHO: Final[tuple[Who, ...]] = get_args(Who)

TOP: Final = 3
"""Classes shown of an answer."""


@dataclass(frozen=True, eq=False)
class Course:
    """How one attack went, query by query.

    Attributes:
        name: Which.
        looks: The image at each query, and what its target answered: the static model in
            `static`, the defense in the others.
        seconds: Wall time.
    """

    name: CourseName
    looks: tuple[Look, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class PlaygroundAnswer:
    """What the static model or the defense serves of a submission.

    Attributes:
        served: Of the whole batch; its trace is about the image alone.
        labels: int64 (N,).
    """

    served: Submission
    labels: Tensor

    @property
    def predicted(self) -> int | None:
        """The image's class; None without a prediction."""
        return self.served.predictions[0]

    @property
    def right(self) -> bool:
        """Whether the image's label was predicted."""
        return self.predicted == int(self.labels[0])

    @property
    def top(self) -> tuple[tuple[int, float], ...]:
        """The image's most likely classes with their confidence; empty without a prediction."""
        return () if self.predicted is None else top_classes(self.served.logits[0])

    @property
    def batch_right(self) -> int:
        """How many members of the batch are answered rightly."""
        pairs = zip(self.served.predictions, self.labels.tolist(), strict=True)
        return sum(predicted == label for predicted, label in pairs)


@dataclass(frozen=True, eq=False)
class PlaygroundSubmission:
    """A whole batch, submitted afresh to the static model and to the defense.

    Attributes:
        found_by: The attack that made it; None of the natural batch.
        query: Where the attack fooled its target on the way and not at its end, the query.
        batch: float32 (N, C, H, W); the image comes first.
        static: What the static model serves.
        defense: What the defense serves, adapted to this batch.
    """

    found_by: CourseName | None
    query: int | None
    batch: Tensor
    static: PlaygroundAnswer
    defense: PlaygroundAnswer

    @property
    def image(self) -> Tensor:
        """The image in it, (C, H, W)."""
        return self.batch[0]

    def answer(self, who: Who) -> PlaygroundAnswer:
        """What one of the two serves."""
        return self.static if who == "static" else self.defense


@dataclass(frozen=True)
class Cost:
    """What it takes the defense to answer a batch.

    Attributes:
        seconds: To adapt to the natural batch, and to answer it.
        static_seconds: The static model's forward of the same batch.
        steps: Of the adaptation.
    """

    seconds: float
    static_seconds: float
    steps: int

    @property
    def forwards(self) -> float:
        """The answer in static forwards."""
        return self.seconds / self.static_seconds


@dataclass(frozen=True, eq=False)
class PlaygroundOutcome:
    """Everything that the page shows of a run.

    Attributes:
        setup: What was asked for.
        picked: The image.
        label: Its class; the static model's answer if the class is unknown.
        classes: Names of the classes.
        company: Positions of the bundled images in its batch, in order.
        courses: The attacks, the one on the static model first.
        submissions: What was submitted afresh, the natural batch first.
        cost: Of the adaptation.
    """

    setup: Setup
    picked: Picked
    label: int
    classes: tuple[str, ...]
    company: tuple[int, ...]
    courses: tuple[Course, ...]
    submissions: tuple[PlaygroundSubmission, ...]
    cost: Cost

    @property
    def natural(self) -> PlaygroundSubmission:
        """The natural batch."""
        return self.submissions[0]

    def breaks(self, who: Who) -> Iterator[PlaygroundSubmission]:
        """Return the submissions in which the image has a wrong prediction, or none."""
        return (submission for submission in self.submissions if not submission.answer(who).right)

    def least_right(self, who: Who) -> int:
        """Return the fewest members of the batch that a submission left right."""
        return min(submission.answer(who).batch_right for submission in self.submissions)


def asked_by(course: CourseName) -> Who:
    """Return whether an attack queries the static model or the defense."""
    return "static" if course == "static" else "defense"


def top_classes(logits: Tensor) -> tuple[tuple[int, float], ...]:
    """The most likely classes of logits (classes,), each with its confidence."""
    values, classes = torch.softmax(logits, 0).topk(min(TOP, len(logits)))
    return tuple(zip(classes.tolist(), values.tolist(), strict=True))
