"""The parts of the page as HTML: everything shown passes through templates that escape it."""

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
        name: Of the class.
        share: In [0, 1].
        right: Whether it is the label.
    """

    name: str
    share: float
    right: bool


@dataclass(frozen=True)
class Card:
    """One attack at one query.

    Attributes:
        title: Whom it asks.
        subtitle: What it is.
        colour: Which of the report's colours.
        query: Shown here.
        last: The last so far.
        image: As asked about, a data URI.
        perturbation: Enlarged, a data URI.
        factor: By how much.
        right: Whether the label was predicted.
        bars: The most likely classes; empty without a prediction.
        loss: Cross-entropy of the label.
        margin: Of the label.
    """

    title: str
    subtitle: str
    colour: int
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
    """A submission.

    Attributes:
        title: What was submitted.
        image: A data URI.
        perturbation: Enlarged, a data URI; None of the natural image.
        factor: By how much.
        smoothed: The smoothed input, a data URI; None without smoothing.
        sigma: Of the smoothing, in words.
        static: What the static model serves.
        defense: What the defense serves.
        static_bars: The static model's most likely classes.
        defense_bars: The defense's.
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
    """The image as the models see it, and what to know before the run.

    Args:
        picked: The image.
        classes: Their names.
        setup: What is chosen; None where that is not valid yet.
    """
    return _render(
        "chosen.html.j2",
        picked=picked,
        image=pictures.data_uri(picked.pixels),
        label=None if picked.label is None else classes[picked.label],
        notes=() if setup is None else tuple(notes(setup)),
    )


def empty() -> str:
    """What stands where a run will be seen."""
    return _render("empty.html.j2")


def progress(sight: Sight | None, setup: Setup) -> str:
    """How far a run is; without a sight, that it begins."""
    what = "" if sight is None else _told(sight, setup)
    return _render("progress.html.j2", what=what, share=0.0 if sight is None else sight.share)


def stopped(setup: Setup, seconds: float | None = None) -> str:
    """That a run was stopped; after how many seconds, where that is all it may take."""
    return _render("stopped.html.j2", setup=setup, seconds=seconds)


def waiting(before: int) -> str:
    """That other runs come first."""
    runs = "one run" if before == 1 else f"{before} runs"
    return _render("progress.html.j2", what=f"Waiting: {runs} before this one", share=0.0)


def watched(looks: Looks, setup: Setup, classes: Sequence[str], query: int | None = None) -> str:
    """Every attack at a query, side by side, and the margins by query.

    Args:
        looks: Of every attack that has begun.
        setup: What is run.
        classes: Their names.
        query: Which; an attack that took fewer is shown at its last. None for the latest.
    """
    cards = [_card(name, seen, setup, classes, query) for name, seen in looks.items() if len(seen)]
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
    """What a run says.

    Args:
        outcome: It.
        before: What was run before on the same page.
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
    """What is served, and how the defense adapted."""
    return _render(
        "results.html.j2",
        outcome=outcome,
        setup=outcome.setup,
        label=outcome.classes[outcome.label],
        rows=[_row(each, outcome) for each in outcome.submissions],
        charts=[
            drawn
            for drawn in (charts.entropy_chart(outcome), charts.sigma_chart(outcome))
            if drawn is not None
        ],
    )


def style() -> str:
    """The page's style sheet."""
    return _render("page.css")


def _card(
    name: CourseName, seen: Sequence[Look], setup: Setup, classes: Sequence[str], query: int | None
) -> Card:
    last = len(seen) - 1
    look = seen[last if query is None else min(query, last)]
    enlarged, factor = pictures.enlarged(look.image, seen[0].image)
    return Card(
        title=words.target(name, setup.defense),
        subtitle=words.course(name),
        colour=charts.COLOURS[name],
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


def _row(found: PlaygroundSubmission, outcome: PlaygroundOutcome) -> HistoryRow:
    natural = outcome.natural.image
    enlarged, factor = pictures.enlarged(found.image, natural)
    smoothing, sigma = outcome.setup.config.smoothing, found.defense.served.trace.sigma
    smoothed = None
    if smoothing is not None and sigma is not None:
        smoothed = pictures.data_uri(pictures.smoothed(found.image, sigma, smoothing.covariance))

    def bars(answer: PlaygroundAnswer) -> tuple[Bar, ...]:
        if answer.predicted is None:
            return ()
        return _bars(answer.served.logits[0], outcome.label, outcome.classes)

    return HistoryRow(
        title=words.submission(found),
        image=pictures.data_uri(found.image),
        perturbation=None if found.found_by is None else pictures.data_uri(enlarged),
        factor=factor,
        smoothed=smoothed,
        sigma="" if sigma is None else f"{sigma[0]:.2f}",
        static=found.static,
        defense=found.defense,
        static_bars=bars(found.static),
        defense_bars=bars(found.defense),
    )


def _bars(logits: Tensor, label: int, classes: Sequence[str]) -> tuple[Bar, ...]:
    return tuple(Bar(classes[at], share, at == label) for at, share in top_classes(logits))


def _told(sight: Sight, setup: Setup) -> str:
    whom = words.target(sight.course, setup.defense)
    return (
        f"{whom}, {words.course(sight.course)}: query {sight.look.query} of at most "
        f"{max(sight.planned - 1, sight.look.query)}"
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", MINUS)


@cache
def _environment() -> Environment:
    made = environment("dent.playground")
    made.filters["signed"] = _signed
    return made


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)
