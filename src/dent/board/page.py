"""Make the page of the board from the records: one file that needs no other file or network."""

import base64
import hashlib
import math
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Literal

from markupsafe import Markup

from dent.board.board_row import BoardRow, RowRuling, VariantResult
from dent.board.row_checks import gains_of_halves
from dent.board.tracks import HEADLINE, NOT_OF_THE_BOARD, Track
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.result import Count, Difference
from dent.report import wording
from dent.report.charts import HEIGHT, Tick, nice_ticks
from dent.report.html import environment, to_html
from dent.report.loading import NamedRun
from dent.storage.disk import write_atomically
from dent.storage.protected import refuse_record
from dent.support.plural import counted
from dent.support.rounding import MINUS, factor

LOOKS: Final[dict[RowRuling, tuple[int, str]]] = {
    "robust gain": (3, "diamond"),
    "no gain": (0, "circle"),
    "harmful": (2, "down"),
    "inconclusive": (5, "square"),
    "the reference": (1, "bar"),
    "none": (4, "triangle"),
}
"""By ruling, the number of the color in the style sheet, and the shape."""
_TONES: Final[dict[RowRuling, str]] = {"robust gain": "good", "harmful": "bad"}
REPORT: Final = "report.html"
_LEAST_COST: Final = 1.0
_VIEWS: Final = "Against views"
_NARROW: Final = 3.2
"""Pixels of one percent of a plot's width on a phone."""
_MARK: Final = (-6.0, -6.0, 6.0, 6.0)
_ARROW: Final = (-6.0, -6.0, 6.0, 17.0)
_DIGIT: Final = 7.0
_LINE: Final = 11.0
_PLACES: Final = tuple(
    (side, down) for down in (-4.0, 13.0, -16.0, 25.0, -28.0, 37.0) for side in ("right", "left")
)
"""Where the number of a dot may stand: its side, and pixels down to its baseline."""


@dataclass(frozen=True)
class Heading:
    """A column's title, and how the column is sorted."""

    title: str
    kind: Literal["text", "number"]


COLUMNS: Final = (
    Heading("Defense", "text"),
    Heading("Verdict", "text"),
    Heading("Against its base", "number"),
    Heading(_VIEWS, "number"),
    Heading("Clean, against its base", "number"),
    Heading("Cost", "number"),
    Heading("Depends on its batch", "text"),
    Heading("Decided by", "text"),
    Heading("Samples", "number"),
    Heading("Suite", "number"),
    Heading("Trust", "text"),
)


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
class TableLine:
    """A row of the table, as it is shown."""

    number: int
    name: str
    track: str
    links: tuple[Link, ...]
    known_attacks: tuple[Any, ...]
    departures: tuple[str, ...]
    void: str | None
    practice: bool
    cells: tuple[BoardCell, ...]


@dataclass(frozen=True)
class Dot:
    """A row in the plot: x in percent of the width; y, low and high in pixels from the top.

    `bound` says that the difference is an upper bound: then `low` is `y`. The number stands `label`
    pixels right of and below the dot.
    """

    number: int
    x: float
    y: float
    low: float | None
    high: float | None
    colour: int
    shape: str
    text: str
    bound: bool = False
    label: tuple[float, float] = (8.0, -4.0)


@dataclass(frozen=True)
class Scatter:
    """A plot of gain against cost, for the rows of a track."""

    track: str
    title: str
    alt: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    zero: float
    dots: tuple[Dot, ...]
    rulings: frozenset[RowRuling]
    base: str = ""
    height: float = HEIGHT


def write_page(rows: Sequence[BoardRow], out: Path, reports: Collection[Path] = ()) -> None:
    """Write the page.

    Args:
        rows: The rows, in the order in which they are first shown.
        out: The file. Links to reports are relative to its folder.
        reports: The reports to link, as `write_reports` returned them.

    Raises:
        ConfigError: The page would replace one of the records of a run or row.
        RecordError: The file cannot be written.
    """
    refuse_record(out)
    write_atomically(out, to_page(rows, out.parent, reports).encode())


def write_reports(rows: Sequence[BoardRow], data_root: Path | None = None) -> tuple[Path, ...]:
    """Write the report of each row's headline run beside its records, and return their paths.

    Args:
        rows: The rows.
        data_root: Folder of the datasets, for the images in the reports.

    Raises:
        RecordError: A report cannot be written.
    """
    written = []
    for row in rows:
        run = row.headline.run
        page = to_html([NamedRun(row.name, run)], data_root=data_root)
        write_atomically(_report_of(row), page.encode())
        written.append(_report_of(row))
    return tuple(written)


def _report_of(row: BoardRow) -> Path:
    return row.folder / HEADLINE / REPORT


def to_page(rows: Sequence[BoardRow], base: Path, reports: Collection[Path] = ()) -> str:
    """Return the page.

    Args:
        rows: The rows, in the order in which they are first shown.
        base: The folder that links are relative to.
        reports: The reports to link. Others are not linked: a submitter may have written them.
    """
    used = list(dict.fromkeys(row.track.name for row in rows))
    by_name: dict[str, Track] = {row.track.name: row.track for row in rows}
    numbers = {id(row): number for number, row in enumerate(rows, start=1)}
    lines = [_line(numbers[id(row)], row, base, reports) for row in rows]
    columns: tuple[Heading, ...] = COLUMNS
    if all(row.views is None and row.less_views is None for row in rows):
        at = [column.title for column in columns].index(_VIEWS)
        columns = (*columns[:at], *columns[at + 1 :])
        # The first column is the name, and no cell.
        lines = [replace(line, cells=(*line.cells[: at - 1], *line.cells[at:])) for line in lines]
    return (
        environment("dent.board")
        .get_template("board.html.j2")
        .render(
            rows=lines,
            tracks=[by_name[name] for name in used],
            columns=columns,
            has_views=columns is COLUMNS,
            charts=_charts(rows),
            nonces=list(dict.fromkeys(_nonces(rows))),
            not_of_the_board=NOT_OF_THE_BOARD,
            looks=LOOKS,
            script=Markup(_script()),  # noqa: S704 (a file of this package)
            script_hash=base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode(),
        )
    )


def to_plots(rows: Sequence[BoardRow], page: str) -> str:
    """Return the plots of the page alone, as HTML for another page.

    Args:
        rows: All rows of the page, in the order in which it shows them.
        page: The address of the page. The dots link to its rows.
    """
    template = environment("dent.board").get_template("plots.html.j2")
    return template.render(charts=_charts(rows), looks=LOOKS, page=page)


def plots_style(scope: str, dark: str) -> str:
    """Return the style sheet of the plots on another page.

    Args:
        scope: The selector of the element that contains the plots. The rules apply only in it.
        dark: The selector of the page's dark color scheme.
    """
    templates = environment("dent.board")
    light, night, chart, own = (
        templates.get_template(f"{name}.css").render()
        for name in ("light", "dark", "chart", "scatter")
    )
    return f"{scope} {{\n{light}{chart}{own}}}\n{dark} {scope} {{\n{night}}}\n"


def _charts(rows: Sequence[BoardRow]) -> list[Scatter]:
    """Return the plot of each track that has one; its numbers are the places in `rows`."""
    numbered = list(enumerate(rows, start=1))
    tracks = {row.track.name: row.track for row in rows}
    charts = (
        scatter(track, [(number, row) for number, row in numbered if row.track.name == name])
        for name, track in tracks.items()
    )
    return [chart for chart in charts if chart is not None]


def _nonces(rows: Sequence[BoardRow]) -> Iterator[str]:
    """Yield each nonce with its source, where it is stated."""
    for row in rows:
        if row.nonce is not None and row.nonce_source is not None:
            yield f"{row.nonce[:16]}: {row.nonce_source}"


@cache
def _script() -> str:
    return files("dent.board").joinpath("templates/board.js").read_text("utf-8")


def _line(number: int, row: BoardRow, base: Path, reports: Collection[Path]) -> TableLine:
    submission = row.submission
    return TableLine(
        number=number,
        name=row.name,
        track=row.track.name,
        links=tuple(_links(row, base, reports)),
        known_attacks=() if submission is None else submission.known_attacks,
        departures=tuple(_departures(row)),
        void=row.void,
        practice=row.track.practice,
        cells=tuple(_cells(row)),
    )


def _departures(row: BoardRow) -> Iterator[str]:
    for run in row.runs:
        where = "" if run is row.headline else f"{run.name}: "
        yield from (f"{where}{departure}" for departure in run.departures)


def _links(row: BoardRow, base: Path, reports: Collection[Path]) -> Iterator[Link]:
    submission = row.submission
    if submission is not None and submission.paper is not None:
        yield Link("paper", submission.paper)
    if submission is not None and submission.repository is not None:
        yield Link("code", submission.repository)
    if _report_of(row) in reports:
        relative = os.path.relpath(_report_of(row), base)
        yield Link("report", Path(relative).as_posix())


def _cells(row: BoardRow) -> Iterator[BoardCell]:
    yield _verdict(row)
    variants = tuple(
        f"{variant.name}: {gain_of(variant)}" + ("" if variant.finished else ", not finished")
        for variant in row.variants
        if variant.difference is not None
    )
    if row.ruling == "the reference":
        robust, accurate = row.headline.defense.worst.served, row.headline.defense.natural
        against, natural = _counted(robust, " robust"), _counted(accurate)
    else:
        stop = row.headline.decided
        notes = variants if stop is None else (wording.stop(stop), *variants)
        notes = (*_halves(row), *notes)
        tone = "good" if row.ruling == "robust gain" else _harmed(row, row.difference)
        against = _paired(row.difference, "not measured", notes, tone, is_bound=stop is not None)
        natural = _paired(row.natural, "not measured", tone=_harmed(row, row.natural))
    yield against
    views = row.views
    named = () if views is None or row.less_views is None else (f"of {views.defense_name}",)
    yield _paired(row.less_views, _without_views(row), named)
    yield natural
    cost = row.cost
    yield BoardCell("" if cost is None else factor(cost), cost, missing="not measured")
    depends = "yes" if row.depends_on_batch else "no"
    yield BoardCell(depends, depends)
    decided = None if row.decided_by is None else _decided(row)
    yield BoardCell(decided or "", decided, missing="nothing fell")
    yield _samples(row)
    stale = ("stale: a newer suite is out",) if row.stale else ()
    yield BoardCell(str(row.suite or ""), row.suite, missing="not whole", notes=stale, tone="quiet")
    # A challenge may name any page, so the link does not promise images.
    links = tuple(
        Link(f"page given by {each.by}", each.url)
        for each in row.broken_by
        if each.url is not None and _is_web(each.url)
    )
    images = tuple(OutsideImages(each.by, each.digest) for each in row.broken_by)
    # The page names departures from the track beside the name of the row.
    notes = tuple(problem for problem in row.problems if not problem.startswith("track: "))
    notes = notes if row.unbound is None else (row.unbound, *notes)
    tone = "bad" if row.broken_by or notes else "quiet"
    yield BoardCell(row.trust, row.trust, notes=notes, images=images, links=links, tone=tone)


def _halves(row: BoardRow) -> Iterator[str]:
    """Yield a gain by half: a small one that was tuned on the fixed half passes its check."""
    fixed, drawn = gains_of_halves(row) if row.ruling == "robust gain" else ([], [])
    if fixed and drawn:
        means = (wording.points(fmean(half)) for half in (fixed, drawn))
        yield "{} on the fixed half, {} on the drawn half".format(*means)


def gain_of(run: VariantResult) -> str:
    """Return the difference of a run in words, such as `at most +0.4 [−1.2, +2.0], after ...`."""
    text = wording.difference(run.difference)
    if run.decided is None or not text:
        return text
    return f"{wording.bound(text, run.decided)}, {wording.stop(run.decided)}"


def _harmed(row: BoardRow, difference: Difference | None) -> str:
    """Return the tone of a difference: bad if it is why the row is harmful."""
    is_lower = row.ruling == "harmful" and wording.reading(difference) == "below"
    return "bad" if is_lower else ""


def _without_views(row: BoardRow) -> str:
    """Return why a row is not compared with the views."""
    if row.views is None:
        return "not measured"
    if row.stopped:
        return "stopped early"
    return "not measured" if row.finished else "not finished"


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


def _paired(
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


def _counted(count: Count, what: str = "") -> BoardCell:
    """Return the cell of an accuracy of the base model, to which the others are compared."""
    text = "" if count.share is None else f"{wording.percent(count.share)}{what}"
    interval = wording.interval(count.interval)
    return BoardCell(
        text, interval=interval, missing="not measured", notes=("the reference",), tone=""
    )


def _samples(row: BoardRow) -> BoardCell:
    notes: tuple[str, ...] = ("the fixed half alone",)
    if row.nonce is not None:
        notes = (f"half drawn by {row.nonce[:16]}",)
        if row.nonce_source is None:
            notes = (*notes, "source of the nonce not stated")
    return BoardCell(str(row.headline.result.samples), row.headline.result.samples, notes=notes)


def _decided(row: BoardRow) -> str:
    name = row.decided_by or ""
    if name.startswith("challenge/"):
        return "an outside attack"
    return wording.decided(name, is_static=row.headline.defense_name == STATIC)


def _is_web(url: str) -> bool:
    return url.startswith(("https://", "http://"))


def _signed(step: float) -> str:
    return f"{step:+g}".replace("-", MINUS) if step else "0"


def scatter(track: Track, rows: Sequence[tuple[int, BoardRow]]) -> Scatter | None:
    """Lay out the plot of gain against cost; None if no row that counts has both.

    Args:
        track: The track.
        rows: Its rows with their numbers. Void rows are left out.
    """
    placed = [
        (number, row, row.cost, row.difference.value, row.difference.interval)
        for number, row in rows
        if row.cost is not None
        and row.void is None
        and row.difference is not None
        and row.difference.value is not None
    ]
    if not placed:
        return None
    edges = [0.0, *(100 * each[3] for each in placed)]
    edges += [
        100 * edge
        for _, row, _, _, interval in placed
        if interval is not None
        for edge in (interval[1:] if row.headline.decided else interval)
    ]
    steps = nice_ticks(max(edges), min(edges))
    doublings = max(1, math.ceil(math.log2(max(2.0, *(each[2] for each in placed)))))

    def across(cost: float) -> float:
        return round(100 * math.log2(max(cost, _LEAST_COST)) / doublings, 3)

    def down(gain: float) -> float:
        return round(HEIGHT * (1 - (gain - steps[0]) / (steps[-1] - steps[0])), 2)

    dots, said = [], []
    for number, row, cost, gain, interval in placed:
        colour, shape = LOOKS[row.ruling]
        text = (
            f"{number} {row.name}: {gain_of(row.headline)}, in points, at {factor(cost)}, "
            f"{row.ruling}"
        )
        said.append(text)
        low, high = (None, None) if interval is None else (down(100 * e) for e in interval)
        bound = row.headline.decided is not None
        x, y = across(cost), down(100 * gain)
        low = y if bound and low is not None else low
        dots.append(Dot(number, x, y, low, high, colour, shape, text, bound))
    title = f"Gain against cost: {track.label}"
    return Scatter(
        track=track.name,
        title=title,
        alt=f"{title}. {counted(len(said), 'row')}: {'; '.join(said)}.",
        x_ticks=tuple(
            Tick(across(2**power), f"{2**power}×")
            for power in range(0, doublings + 1, 1 if doublings < 8 else 2)
        ),
        y_ticks=tuple(
            Tick(down(step), f"{step:+g}".replace("-", MINUS) if step else "0") for step in steps
        ),
        zero=down(0.0),
        dots=_labeled(dots),
        rulings=frozenset(row.ruling for _, row, *_ in placed),
        base=next((_base(row) for _, row in rows if row.ruling == "the reference"), ""),
    )


def _base(row: BoardRow) -> str:
    """Say how robust and accurate the base model is."""
    defense = row.headline.defense
    robust, natural = wording.count(defense.worst.served), wording.count(defense.natural)
    return f"The base model: {robust} robust, {natural} clean."


def _labeled(dots: Sequence[Dot]) -> tuple[Dot, ...]:
    """Place the number of each dot so that it covers no mark and no other number, if it can."""
    left_of_axis = (-100.0, 0.0, 0.0, HEIGHT)
    taken = [left_of_axis, *(_box(dot, *(_ARROW if dot.bound else _MARK)) for dot in dots)]
    labeled = []
    for dot in dots:
        width = _DIGIT * len(str(dot.number))
        corners = [(8.0 if side == "right" else -8.0 - width, down) for side, down in _PLACES]
        boxes = [_box(dot, x, y - _LINE, x + width, y) for x, y in corners]
        covered = [sum(_overlap(box, other) for other in taken) for box in boxes]
        best = covered.index(min(covered))
        taken.append(boxes[best])
        labeled.append(replace(dot, label=corners[best]))
    return tuple(labeled)


_Box = tuple[float, float, float, float]


def _box(dot: Dot, left: float, top: float, right: float, bottom: float) -> _Box:
    """Return a box around a dot, in pixels of a narrow plot."""
    x = dot.x * _NARROW
    return x + left, dot.y + top, x + right, dot.y + bottom


def _overlap(a: _Box, b: _Box) -> float:
    """Return the area that two boxes share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)
