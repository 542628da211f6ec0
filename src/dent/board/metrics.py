"""The accuracies and the gain of a row as single numbers, for other sites that list results."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from dent.board.board_row import BoardRow
from dent.board.tracks import NOT_OF_THE_BOARD
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.intervals import LEVEL, OF_PROPORTION
from dent.evaluation.results.result import Count
from dent.support.plural import counted

OURS: Final = "torch-dent"


@dataclass(frozen=True)
class Metric:
    """One number of a row.

    Attributes:
        key: Its name in lower case, with underscores.
        title: Its name for readers.
        description: How it is measured.
        value: A share in [0, 1], or a difference of shares in [-1, 1].
        bounds: The smallest and the largest possible value.
        interval: Confidence interval of the value; None if there is none.
        level: Confidence level of the interval.
        method: Method of the interval.
        samples: Number of samples.
    """

    key: Literal["robust_accuracy", "clean_accuracy", "base_robust_accuracy", "robust_gain"]
    title: str
    description: str
    value: float
    bounds: tuple[float, float]
    interval: tuple[float, float] | None
    level: float
    method: str
    samples: int


def metrics(row: BoardRow) -> tuple[Metric, ...]:
    """Return robust and clean accuracy of a row, and the gain over its base model."""
    return tuple(_metrics(row))


def reason_to_omit(row: BoardRow) -> str | None:
    """Return why other sites must not show a row; None if they may."""
    reasons = (
        (row.track.practice, NOT_OF_THE_BOARD),
        (row.void is not None, f"void: {row.void}"),
        (row.headline.result.status != "complete", "its evaluation is not complete"),
        (
            bool(row.headline.departures),
            f"not the evaluation of its track: {'; '.join(row.headline.departures)}",
        ),
        (
            bool(row.problems),
            f"it does not pass the checks of a row: {'; '.join(row.problems)}",
        ),
        (
            row.ruling == "none",
            "it has no verdict, because it was not evaluated by the whole suite",
        ),
    )
    return next((reason for applies, reason in reasons if applies), None)


def maker(row: BoardRow) -> str:
    """Return who made the defense: the owner of its repository, or `torch-dent` if it has none."""
    if row.submission is None or row.submission.repository is None:
        return OURS
    address = urlsplit(str(row.submission.repository))
    owner = address.path.strip("/").partition("/")[0]
    return owner or address.netloc


def _metrics(row: BoardRow) -> Iterator[Metric]:
    track, result = row.track, row.headline.result
    defense, static = row.headline.defense, result.defenses[STATIC]
    suite = (
        f"Worst case over the attacks of the dynamic suite {row.suite} of torch-dent, budget "
        f"{track.budget}, and over attacks from outside, at {track.norm} {track.eps}, in batches "
        f"of {track.batch_size} that are submitted whole and afresh."
    )
    if defense.decided is not None:
        suite += (
            f" An upper bound: the run stopped after {defense.decided.after} of "
            f"{counted(defense.decided.of, 'attack')}, because a gain can no longer be shown with "
            "these samples."
        )
    yield from _share("robust_accuracy", "Robust accuracy", suite, defense.worst.served)
    yield from _share("clean_accuracy", "Clean accuracy", "Without an attack.", defense.natural)
    if row.headline.defense_name == STATIC:
        return
    yield from _share(
        "base_robust_accuracy",
        "Robust accuracy of the base model",
        "The same worst case of the base model without the defense.",
        static.worst.served,
    )
    difference = row.difference
    if difference != defense.difference:
        suite += " Without the attacks from outside on the base model, which would raise it."
    if difference is not None and difference.value is not None:
        yield Metric(
            "robust_gain",
            "Robust accuracy less that of the base model",
            f"{suite} Paired by sample. The verdict is: {row.ruling}.",
            difference.value,
            (-1.0, 1.0),
            difference.interval,
            difference.level,
            difference.method,
            difference.total,
        )


def _share(
    key: Literal["robust_accuracy", "clean_accuracy", "base_robust_accuracy"],
    title: str,
    description: str,
    count: Count,
) -> Iterator[Metric]:
    if count.share is not None:
        yield Metric(
            key,
            title,
            description,
            count.share,
            (0.0, 1.0),
            count.interval,
            LEVEL,
            OF_PROPORTION,
            count.total,
        )
