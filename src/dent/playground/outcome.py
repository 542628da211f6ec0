"""The outcome of one run of the page: everything that is shown, as a value."""

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
"""The name of an attack: `static` attacks the static model, the others attack the defense."""
Who = Literal["static", "defense"]
WHO: Final[tuple[Who, ...]] = get_args(Who)

TOP: Final = 3
"""Number of classes that are shown for a prediction."""


@dataclass(frozen=True, eq=False)
class Course:
    """The queries of one attack.

    Attributes:
        name: Name of the attack.
        looks: The image in each query, with the logits of the target: the static model for
            `static`, the defense for the others.
        seconds: Wall time of the attack, in seconds.
    """

    name: CourseName
    looks: tuple[Look, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class PlaygroundAnswer:
    """The predictions of the static model or of the defense on a submitted batch.

    Attributes:
        served: The submission of the whole batch; its trace is about the image only.
        labels: Labels of the batch, int64 (N,).
    """

    served: Submission
    labels: Tensor

    @property
    def predicted(self) -> int | None:
        """The predicted class of the image; None without a prediction."""
        return self.served.predictions[0]

    @property
    def right(self) -> bool:
        """Whether the prediction for the image is its label."""
        return self.predicted == int(self.labels[0])

    @property
    def top(self) -> tuple[tuple[int, float], ...]:
        """The image's most likely classes with their confidence; empty without a prediction."""
        return () if self.predicted is None else top_classes(self.served.logits[0])

    @property
    def batch_right(self) -> int:
        """The number of members of the batch that are predicted correctly."""
        pairs = zip(self.served.predictions, self.labels.tolist(), strict=True)
        return sum(predicted == label for predicted, label in pairs)


@dataclass(frozen=True, eq=False)
class PlaygroundSubmission:
    """A whole batch, submitted once more to the static model and to the defense.

    Attributes:
        found_by: The attack that made the batch; None for the natural batch.
        query: Number of the query that sent the batch; None for the natural batch and for the end
            of an attack.
        batch: float32 (N, C, H, W); the image comes first.
        static: The predictions of the static model.
        defense: The predictions of the defense, adapted to this batch.
    """

    found_by: CourseName | None
    query: int | None
    batch: Tensor
    static: PlaygroundAnswer
    defense: PlaygroundAnswer

    @property
    def image(self) -> Tensor:
        """The image in the batch, (C, H, W)."""
        return self.batch[0]

    def answer(self, who: Who) -> PlaygroundAnswer:
        """Return the predictions of the static model or of the defense."""
        return self.static if who == "static" else self.defense


@dataclass(frozen=True)
class Cost:
    """The time that the defense takes for a batch.

    Attributes:
        seconds: Seconds to adapt to the natural batch and to predict it.
        static_seconds: Seconds of the static model's forward of the same batch.
        steps: Number of steps of the adaptation.
    """

    seconds: float
    static_seconds: float
    steps: int

    @property
    def forwards(self) -> float:
        """The time of the defense, in static forwards."""
        return self.seconds / self.static_seconds


@dataclass(frozen=True, eq=False)
class PlaygroundOutcome:
    """Everything that the page shows of a run.

    Attributes:
        setup: The setup of the run.
        picked: The image.
        label: Its class; the static model's prediction if the class is unknown.
        classes: Names of the classes.
        company: Positions of the other images of the batch in the bundled images, in order.
        courses: The attacks, the one on the static model first.
        submissions: The submissions, the natural batch first.
        cost: The time that the defense takes.
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
        """Return an iterator of the submissions in which the image is not predicted correctly."""
        return (submission for submission in self.submissions if not submission.answer(who).right)

    def least_right(self, who: Who) -> int:
        """Return the fewest members of the batch that a submission left correct."""
        return min(submission.answer(who).batch_right for submission in self.submissions)


def asked_by(course: CourseName) -> Who:
    """Return whether an attack queries the static model or the defense."""
    return "static" if course == "static" else "defense"


def top_classes(logits: Tensor) -> tuple[tuple[int, float], ...]:
    """Return the most likely classes for logits (classes,), each with its confidence."""
    values, classes = torch.softmax(logits, 0).topk(min(TOP, len(logits)))
    return tuple(zip(classes.tolist(), values.tolist(), strict=True))
