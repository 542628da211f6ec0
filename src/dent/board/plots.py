"""Lay out the plots of gain against cost, one for each track: x in percent, y in pixels.

A template draws them as inline SVG, on the page of the board or on another page.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from dent.board.board_row import BoardRow, RowRuling
from dent.board.tracks import Track
from dent.report import wording
from dent.report.charts import HEIGHT, Tick, nice_ticks
from dent.report.html import environment
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

_LEAST_COST: Final = 1.0
"""The cost at the left edge, in forwards of the base model."""
_NARROW: Final = 3.2
"""Pixels of one percent of a plot's width on a phone."""
_MARK: Final = (-6.0, -6.0, 6.0, 6.0)
"""Box of a dot around its center, in pixels: left, top, right, bottom."""
_ARROW: Final = (-6.0, -6.0, 6.0, 17.0)
"""Box of a dot with an arrow."""
_DIGIT: Final = 7.0
"""Width of a digit in pixels."""
_LINE: Final = 11.0
"""Height of a digit in pixels."""
_PLACES: Final = tuple(
    (side, down) for down in (-4.0, 13.0, -16.0, 25.0, -28.0, 37.0) for side in ("right", "left")
)
"""Where the number of a dot may stand: its side, and pixels down to its baseline."""


@dataclass(frozen=True)
class Dot:
    """A row in the plot.

    Attributes:
        number: Number of the row in the table.
        x: Its cost, in percent of the width.
        y: Its gain, in pixels from the top.
        low: Lower end of the gain's interval, in pixels from the top; `y` if `bound`. None without
            an interval.
        high: Upper end of the interval.
        color: Number of the color in the style sheet.
        shape: Shape of the marker.
        text: Text of the tooltip.
        bound: Whether the gain is an upper bound.
        label: Pixels by which the number stands right of and below the dot.
    """

    number: int
    x: float
    y: float
    low: float | None
    high: float | None
    color: int
    shape: str
    text: str
    bound: bool = False
    label: tuple[float, float] = (8.0, -4.0)


@dataclass(frozen=True)
class Scatter:
    """A plot of gain against cost, for the rows of a track.

    Attributes:
        track: Name of the track.
        title: Title above the plot.
        alt: A description in words and numbers, for screen readers.
        x_ticks: Ticks of the cost, in percent of the width.
        y_ticks: Ticks of the gain, in pixels from the top.
        zero: Position of a gain of 0, in pixels from the top.
        dots: The rows.
        rulings: The rulings in the legend.
        base: A sentence on the base model; empty if the track has no row of it.
        height: Height in pixels.
    """

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


def to_plots(rows: Sequence[BoardRow], page: str) -> str:
    """Return the plots of the page alone, as HTML for another page.

    Args:
        rows: All rows of the page, in the order in which it shows them.
        page: The address of the page. The dots link to its rows.
    """
    template = environment("dent.board").get_template("plots.html.j2")
    return template.render(charts=scatters(rows), looks=LOOKS, page=page)


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


def scatters(rows: Sequence[BoardRow]) -> list[Scatter]:
    """Return the plot of each track that has one.

    Args:
        rows: All rows. A dot has the number of its row's place among them, from 1.
    """
    numbered = list(enumerate(rows, start=1))
    tracks = {row.track.name: row.track for row in rows}
    plots = (
        scatter(track, [(number, row) for number, row in numbered if row.track.name == name])
        for name, track in tracks.items()
    )
    return [plot for plot in plots if plot is not None]


def scatter(track: Track, rows: Sequence[tuple[int, BoardRow]]) -> Scatter | None:
    """Lay out the plot of a track; None if no row that counts has both a gain and a cost.

    Args:
        track: The track.
        rows: Its rows with their numbers. Void rows are left out.
    """
    points = list(_points(rows))
    if not points:
        return None
    axes = _Axes.around(points)
    dots = [_dot(point, axes) for point in points]
    title = f"Gain against cost: {track.label}"
    described = "; ".join(dot.text for dot in dots)
    return Scatter(
        track=track.name,
        title=title,
        alt=f"{title}. {counted(len(dots), 'row')}: {described}.",
        x_ticks=axes.x_ticks,
        y_ticks=axes.y_ticks,
        zero=axes.down(0.0),
        dots=_labeled(dots),
        rulings=frozenset(point.row.ruling for point in points),
        base=next((_base(row) for _, row in rows if row.ruling == "the reference"), ""),
    )


class _Point(NamedTuple):
    """A row with its cost in forwards of the base model, and its gain and interval in points."""

    number: int
    row: BoardRow
    cost: float
    gain: float
    interval: tuple[float, float] | None
    bound: bool


def _points(rows: Sequence[tuple[int, BoardRow]]) -> Iterator[_Point]:
    """Yield the rows that count and have both a gain and a cost."""
    for number, row in rows:
        cost, difference = row.cost, row.difference
        if row.void is not None or cost is None or difference is None or difference.value is None:
            continue
        interval = None
        if difference.interval is not None:
            low, high = difference.interval
            interval = (100 * low, 100 * high)
        bound = row.headline.decided is not None
        yield _Point(number, row, cost, 100 * difference.value, interval, bound)


@dataclass(frozen=True)
class _Axes:
    """The axes of a plot: cost on a logarithmic scale, gain on a linear one.

    Attributes:
        doublings: The cost at the right edge is 2 to this power.
        steps: The labeled gains in points, ascending, from the lower to the upper edge.
    """

    doublings: int
    steps: tuple[float, ...]

    @classmethod
    def around(cls, points: Sequence[_Point]) -> "_Axes":
        """Return the axes that show all points, the intervals that are drawn, and a gain of 0."""
        gains = [0.0, *(point.gain for point in points)]
        for point in points:
            if point.interval is not None:
                gains += point.interval[1:] if point.bound else point.interval
        highest_cost = max(2.0, *(point.cost for point in points))
        doublings = max(1, math.ceil(math.log2(highest_cost)))
        return cls(doublings, nice_ticks(max(gains), min(gains)))

    def across(self, cost: float) -> float:
        """Return the position of a cost, in percent of the width."""
        return round(100 * math.log2(max(cost, _LEAST_COST)) / self.doublings, 3)

    def down(self, gain: float) -> float:
        """Return the position of a gain in points, in pixels from the top."""
        lowest, highest = self.steps[0], self.steps[-1]
        return round(HEIGHT * (1 - (gain - lowest) / (highest - lowest)), 2)

    @property
    def x_ticks(self) -> tuple[Tick, ...]:
        """Ticks at powers of two, at most eight."""
        every = 1 if self.doublings < 8 else 2
        powers = range(0, self.doublings + 1, every)
        return tuple(Tick(self.across(2**power), f"{2**power}×") for power in powers)

    @property
    def y_ticks(self) -> tuple[Tick, ...]:
        """Ticks at the labeled gains."""
        return tuple(Tick(self.down(step), _signed(step)) for step in self.steps)


def _signed(step: float) -> str:
    return f"{step:+g}".replace("-", MINUS) if step else "0"


def _dot(point: _Point, axes: _Axes) -> Dot:
    row, y = point.row, axes.down(point.gain)
    low = high = None
    if point.interval is not None:
        low, high = map(axes.down, point.interval)
        low = y if point.bound else low
    color, shape = LOOKS[row.ruling]
    gain = wording.gain(row.difference, row.headline.decided)
    text = f"{point.number} {row.name}: {gain}, in points, at {factor(point.cost)}, {row.ruling}"
    x = axes.across(point.cost)
    return Dot(point.number, x, y, low, high, color, shape, text, point.bound)


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
