"""The parts of the page as HTML, rendered by templates that escape every value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment
from torch import Tensor

from dent.playground import charts, words
from dent.playground.compute import Sight
from dent.playground.images import Picked
from dent.playground.ledger import Entry
from dent.playground.outcome import (
    CourseName,
    PlaygroundAnswer,
    PlaygroundOutcome,
    PlaygroundSubmission,
    top_classes,
)
from dent.playground.setup import Setup
from dent.playground.verdict import notes, verdict
from dent.playground.watch import Look
from dent.report import pictures
from dent.report.html import environment
from dent.support.rounding import MINUS

Looks = Mapping[CourseName, Sequence[Look]]


@dataclass(frozen=True)
class Bar:
    """A class and its confidence.

    Attributes:
        name: Name of the class.
        share: Confidence, in [0, 1].
        right: Whether the class is the label.
    """

    name: str
    share: float
    right: bool


@dataclass(frozen=True)
class CourseCard:
    """What the page shows of one attack at one query.

    Attributes:
        title: Name of the model or defense that it queries.
        subtitle: Name of the attack.
        color: Index into the report's colors.
        query: Number of the query shown.
        last: Number of the latest query.
        image: The image of the query, a data URI.
        perturbation: Its enlarged perturbation, a data URI.
        factor: Factor by which the perturbation is enlarged.
        right: Whether the label was predicted.
        bars: The most likely classes; empty without a prediction.
        loss: Cross-entropy of the label.
        margin: Margin of the label.
    """

    title: str
    subtitle: str
    color: int
    query: int
    last: int
    image: str
    perturbation: str
    factor: float
    right: bool
    bars: tuple[Bar, ...]
    loss: float
    margin: float


@dataclass(frozen=True)
class HistoryRow:
    """One submission, as a row of the results.

    Attributes:
        title: What was submitted.
        image: The image, a data URI.
        perturbation: The enlarged perturbation, a data URI; None for the natural image.
        factor: Factor by which the perturbation is enlarged.
        smoothed: The smoothed input, a data URI; None without smoothing.
        sigma: Sigma of the smoothing, as text; empty without smoothing.
        static: The predictions of the static model.
        defense: The predictions of the defense.
        static_bars: The static model's most likely classes.
        defense_bars: The defense's most likely classes.
    """

    title: str
    image: str
    perturbation: str | None
    factor: float
    smoothed: str | None
    sigma: str
    static: PlaygroundAnswer
    defense: PlaygroundAnswer
    static_bars: tuple[Bar, ...]
    defense_bars: tuple[Bar, ...]


def chosen(picked: Picked, classes: Sequence[str], setup: Setup | None) -> str:
    """Render the image as the models see it, and notes about the chosen setup.

    Args:
        picked: The image.
        classes: Names of the classes.
        setup: The chosen setup; None if it is not valid yet.
    """
    return _render(
        "chosen.html.j2",
        picked=picked,
        image=pictures.data_uri(picked.pixels),
        label=None if picked.label is None else classes[picked.label],
        notes=() if setup is None else tuple(notes(setup)),
    )


def empty() -> str:
    """Render the placeholder for a run."""
    return _render("empty.html.j2")


def progress(sight: Sight | None, setup: Setup) -> str:
    """Render the progress of a run; without a sight, its beginning."""
    position = "" if sight is None else _position(sight, setup)
    return _render("progress.html.j2", what=position, share=0.0 if sight is None else sight.share)


def stopped(setup: Setup, seconds: float | None = None) -> str:
    """Render that a run was stopped, with its time limit in seconds if it was reached."""
    return _render("stopped.html.j2", setup=setup, seconds=seconds)


def waiting(before: int) -> str:
    """Render the number of runs that come before a waiting one."""
    runs = "one run" if before == 1 else f"{before} runs"
    return _render("progress.html.j2", what=f"Waiting: {runs} before this one", share=0.0)


def watched(looks: Looks, setup: Setup, classes: Sequence[str], query: int | None = None) -> str:
    """Render all attacks side by side at one query, and their margins by query.

    Args:
        looks: The queries of every attack that has begun.
        setup: The setup of the run.
        classes: Names of the classes.
        query: Number of the query. An attack with fewer queries is shown at its last one. None
            shows the last query of each attack.
    """
    cards = [
        _card(name, course_looks, setup, classes, query)
        for name, course_looks in looks.items()
        if len(course_looks)
    ]
    return _render(
        "watched.html.j2",
        cards=cards,
        chart=charts.margin_chart(looks, setup.defense),
        looks=looks,
        names={
            name: f"{words.target(name, setup.defense)}, {words.course(name)}" for name in looks
        },
        classes=classes,
    )


def ruling(outcome: PlaygroundOutcome, before: Sequence[Entry]) -> str:
    """Render the verdict on a run.

    Args:
        outcome: The outcome of the run.
        before: The earlier runs on the same page.
    """
    return _render(
        "verdict.html.j2",
        outcome=outcome,
        setup=outcome.setup,
        label=outcome.classes[outcome.label],
        verdict=verdict(outcome, before),
        notes=tuple(notes(outcome.setup)),
    )


def results(outcome: PlaygroundOutcome) -> str:
    """Render the predictions on all submissions, and charts of the adaptation."""
    return _render(
        "results.html.j2",
        outcome=outcome,
        setup=outcome.setup,
        label=outcome.classes[outcome.label],
        rows=[_row(submission, outcome) for submission in outcome.submissions],
        charts=[
            chart
            for chart in (charts.entropy_chart(outcome), charts.sigma_chart(outcome))
            if chart is not None
        ],
    )


def style() -> str:
    """Return the style sheet of the page."""
    return _render("page.css")


def _card(
    name: CourseName, looks: Sequence[Look], setup: Setup, classes: Sequence[str], query: int | None
) -> CourseCard:
    last = len(looks) - 1
    look = looks[last if query is None else min(query, last)]
    enlarged, factor = pictures.enlarged(look.image, looks[0].image)
    return CourseCard(
        title=words.target(name, setup.defense),
        subtitle=words.course(name),
        color=charts.COLORS[name],
        query=look.query,
        last=last,
        image=pictures.data_uri(look.image),
        perturbation=pictures.data_uri(enlarged),
        factor=factor,
        right=look.right,
        bars=() if look.predicted is None else _bars(look.logits, look.label, classes),
        loss=look.loss,
        margin=look.margin,
    )


def _row(submission: PlaygroundSubmission, outcome: PlaygroundOutcome) -> HistoryRow:
    natural = outcome.natural.image
    enlarged, factor = pictures.enlarged(submission.image, natural)
    smoothing, sigma = outcome.setup.config.smoothing, submission.defense.served.trace.sigma
    smoothed = None
    if smoothing is not None and sigma is not None:
        smoothed = pictures.data_uri(
            pictures.smoothed(submission.image, sigma, smoothing.covariance)
        )

    def bars(answer: PlaygroundAnswer) -> tuple[Bar, ...]:
        if answer.predicted is None:
            return ()
        return _bars(answer.served.logits[0], outcome.label, outcome.classes)

    return HistoryRow(
        title=words.submission(submission),
        image=pictures.data_uri(submission.image),
        perturbation=None if submission.found_by is None else pictures.data_uri(enlarged),
        factor=factor,
        smoothed=smoothed,
        sigma="" if sigma is None else f"{sigma[0]:.2f}",
        static=submission.static,
        defense=submission.defense,
        static_bars=bars(submission.static),
        defense_bars=bars(submission.defense),
    )


def _bars(logits: Tensor, label: int, classes: Sequence[str]) -> tuple[Bar, ...]:
    return tuple(
        Bar(classes[class_index], share, class_index == label)
        for class_index, share in top_classes(logits)
    )


def _position(sight: Sight, setup: Setup) -> str:
    target = words.target(sight.course, setup.defense)
    return (
        f"{target}, {words.course(sight.course)}: query {sight.look.query} of at most "
        f"{max(sight.planned - 1, sight.look.query)}"
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", MINUS)


@cache
def _environment() -> Environment:
    templates = environment("dent.playground")
    templates.filters["signed"] = _signed
    return templates


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)
