"""The table of the board: what each column says about a row."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final, Literal

from dent.board.board_row import BoardRow, RowRuling
from dent.board.row_checks import gains_of_halves
from dent.board.submission import KnownAttack
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.result import Count, Difference
from dent.report import wording
from dent.support.rounding import factor

_TONES: Final[dict[RowRuling, str]] = {"robust gain": "good", "harmful": "bad"}


@dataclass(frozen=True)
class Link:
    """A link on the page."""

    text: str
    href: str


@dataclass(frozen=True)
class OutsideImages:
    """The maker and the digest of images from outside that lowered a row."""

    by: str
    digest: str


@dataclass(frozen=True)
class BoardCell:
    """A cell of the table.

    Attributes:
        text: The number or word; empty if there is none.
        value: The value by which the column is sorted; None sorts last.
        interval: The interval beside the text.
        missing: The words that are shown if there is no text.
        notes: The lines below the text.
        images: The images from outside that lowered the row, below the notes.
        links: The links below the images.
        tone: `good`, `bad`, `quiet` or empty.
        bound: Whether the number is an upper bound. Bounds are sorted after measurements.
    """

    text: str = ""
    value: float | str | None = None
    interval: str = ""
    missing: str = ""
    notes: tuple[str, ...] = ()
    images: tuple[OutsideImages, ...] = ()
    links: tuple[Link, ...] = ()
    tone: str = "quiet"
    bound: bool = False


@dataclass(frozen=True)
class BoardColumn:
    """A column of the table.

    Attributes:
        title: Its title.
        kind: How it is sorted.
        cell: Makes its cell for a row.
    """

    title: str
    kind: Literal["text", "number"]
    cell: Callable[[BoardRow], BoardCell]


@dataclass(frozen=True)
class TableLine:
    """A row of the table, as it is shown; its cells are those of the columns, in order."""

    number: int
    name: str
    track: str
    links: tuple[Link, ...]
    known_attacks: tuple[KnownAttack, ...]
    departures: tuple[str, ...]
    void: str | None
    practice: bool
    cells: tuple[BoardCell, ...]


def columns_for(rows: Sequence[BoardRow]) -> tuple[BoardColumn, ...]:
    """Return the columns after the row's name: those of the views only if a row has views."""
    return COLUMNS if have_views(rows) else tuple(each for each in COLUMNS if each is not _VIEWS)


def have_views(rows: Sequence[BoardRow]) -> bool:
    """Return whether a row has a run of the views or is compared with them."""
    return any(row.views is not None or row.less_views is not None for row in rows)


def line(
    number: int, row: BoardRow, columns: Sequence[BoardColumn], report: str | None
) -> TableLine:
    """Return a row as it is shown.

    Args:
        number: Its number on the page.
        row: The row.
        columns: The columns of the table.
        report: Address of the report of its headline run; None without one.
    """
    submission = row.submission
    return TableLine(
        number=number,
        name=row.name,
        track=row.track.name,
        links=tuple(_links(row, report)),
        known_attacks=() if submission is None else submission.known_attacks,
        departures=tuple(_departures(row)),
        void=row.void,
        practice=row.track.practice,
        cells=tuple(column.cell(row) for column in columns),
    )


def _departures(row: BoardRow) -> Iterator[str]:
    for run in row.runs:
        where = "" if run is row.headline else f"{run.name}: "
        yield from (f"{where}{departure}" for departure in run.departures)


def _links(row: BoardRow, report: str | None) -> Iterator[Link]:
    submission = row.submission
    if submission is not None and submission.paper is not None:
        yield Link("paper", submission.paper)
    if submission is not None and submission.repository is not None:
        yield Link("code", submission.repository)
    if report is not None:
        yield Link("report", report)


def _verdict(row: BoardRow) -> BoardCell:
    verdict = row.headline.defense.verdict
    if row.void is not None:
        return BoardCell("void", "void", tone="bad")
    if verdict is None:
        word = "" if row.ruling == "none" else row.ruling
        return BoardCell(word, word or None, missing="no verdict")
    ground: tuple[str, ...] = () if verdict.ground is None else (verdict.ground,)
    if _harmed(row, row.natural):
        ground = (*ground, "clean accuracy is lower")
    if row.headline.result.status == "partial":
        ground = (*ground, "not finished")
    if row.headline.decided is not None:
        ground = (*ground, "stopped early")
    return BoardCell(
        verdict.ruling, verdict.ruling, notes=ground, tone=_TONES.get(row.ruling, "quiet")
    )


def _against_base(row: BoardRow) -> BoardCell:
    """Return the difference to the base model, or the base model's own robust accuracy."""
    if row.ruling == "the reference":
        return _accuracy(row.headline.defense.worst.served, " robust")
    variants = tuple(
        f"{variant.name}: {wording.gain(variant.difference, variant.decided)}"
        + ("" if variant.finished else ", not finished")
        for variant in row.variants
        if variant.difference is not None
    )
    stop = row.headline.decided
    notes = variants if stop is None else (wording.stop(stop), *variants)
    notes = (*_by_half(row), *notes)
    tone = "good" if row.ruling == "robust gain" else _harmed(row, row.difference)
    return _difference(row.difference, "not measured", notes, tone, is_bound=stop is not None)


def _by_half(row: BoardRow) -> Iterator[str]:
    """Yield the gain on each half: the check of the halves misses a small one of the fixed half."""
    fixed, drawn = gains_of_halves(row) if row.ruling == "robust gain" else ([], [])
    if fixed and drawn:
        means = (wording.points(fmean(half)) for half in (fixed, drawn))
        yield "{} on the fixed half, {} on the drawn half".format(*means)


def _clean_against_base(row: BoardRow) -> BoardCell:
    """Return the difference on clean images, or the base model's own clean accuracy."""
    if row.ruling == "the reference":
        return _accuracy(row.headline.defense.natural)
    return _difference(row.natural, "not measured", tone=_harmed(row, row.natural))


def _harmed(row: BoardRow, difference: Difference | None) -> str:
    """Return the tone of a difference: bad if it is why the row is harmful."""
    is_lower = row.ruling == "harmful" and wording.reading(difference) == "below"
    return "bad" if is_lower else ""


def _against_views(row: BoardRow) -> BoardCell:
    views = row.views
    notes = () if views is None or row.less_views is None else (f"of {views.defense_name}",)
    return _difference(row.less_views, _without_views(row), notes)


def _without_views(row: BoardRow) -> str:
    """Return why a row is not compared with the views."""
    if row.views is None:
        return "not measured"
    if row.stopped:
        return "stopped early"
    return "not measured" if row.finished else "not finished"


def _cost(row: BoardRow) -> BoardCell:
    text = "" if row.cost is None else factor(row.cost)
    return BoardCell(text, row.cost, missing="not measured")


def _batch_dependence(row: BoardRow) -> BoardCell:
    depends = "yes" if row.depends_on_batch else "no"
    return BoardCell(depends, depends)


def _decided_by(row: BoardRow) -> BoardCell:
    name = row.decided_by
    if name is None:
        return BoardCell(missing="nothing fell")
    by = (
        "an outside attack"
        if name.startswith("challenge/")
        else wording.decided(name, is_static=row.headline.defense_name == STATIC)
    )
    return BoardCell(by, by)


def _samples(row: BoardRow) -> BoardCell:
    notes: tuple[str, ...] = ("the fixed half alone",)
    if row.nonce is not None:
        notes = (f"half drawn by {row.nonce[:16]}",)
        if row.nonce_source is None:
            notes = (*notes, "source of the nonce not stated")
    return BoardCell(str(row.headline.result.samples), row.headline.result.samples, notes=notes)


def _suite(row: BoardRow) -> BoardCell:
    notes = ("stale: a newer suite is out",) if row.stale else ()
    return BoardCell(str(row.suite or ""), row.suite, missing="not whole", notes=notes)


def _trust(row: BoardRow) -> BoardCell:
    # A challenge may name any page, so the link does not promise images.
    links = tuple(
        Link(f"page given by {each.by}", each.url)
        for each in row.broken_by
        if each.url is not None and each.url.startswith(("https://", "http://"))
    )
    images = tuple(OutsideImages(each.by, each.digest) for each in row.broken_by)
    # The page names departures from the track beside the name of the row.
    notes = tuple(problem for problem in row.problems if not problem.startswith("track: "))
    notes = notes if row.unbound is None else (row.unbound, *notes)
    tone = "bad" if row.broken_by or notes else "quiet"
    return BoardCell(row.trust, row.trust, notes=notes, images=images, links=links, tone=tone)


_VIEWS: Final = BoardColumn("Against views", "number", _against_views)
COLUMNS: Final = (
    BoardColumn("Verdict", "text", _verdict),
    BoardColumn("Against its base", "number", _against_base),
    _VIEWS,
    BoardColumn("Clean, against its base", "number", _clean_against_base),
    BoardColumn("Cost", "number", _cost),
    BoardColumn("Depends on its batch", "text", _batch_dependence),
    BoardColumn("Decided by", "text", _decided_by),
    BoardColumn("Samples", "number", _samples),
    BoardColumn("Suite", "number", _suite),
    BoardColumn("Trust", "text", _trust),
)
"""All columns after the one with the name of the row."""


def _difference(
    difference: Difference | None,
    missing: str,
    notes: tuple[str, ...] = (),
    tone: str = "",
    *,
    is_bound: bool = False,
) -> BoardCell:
    if difference is None or difference.value is None:
        return BoardCell(missing=missing, notes=notes)
    return BoardCell(
        (wording.AT_MOST if is_bound else "") + wording.points(difference.value),
        round(difference.value, 6),
        wording.points_interval(difference.interval),
        notes=notes,
        tone=tone,
        bound=is_bound,
    )


def _accuracy(count: Count, what: str = "") -> BoardCell:
    """Return the cell of an accuracy of the base model, to which the others are compared."""
    text = "" if count.share is None else f"{wording.percent(count.share)}{what}"
    interval = wording.interval(count.interval)
    return BoardCell(
        text, interval=interval, missing="not measured", notes=("the reference",), tone=""
    )
