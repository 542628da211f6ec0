"""Charts as plain geometry: x in percent of the width, y in pixels.

A template draws them as inline SVG. Markers and text keep their size at every width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dent.report.flags import Flag
from dent.support.rounding import percent

HEIGHT: Final = 200.0
SHAPES: Final = ("circle", "square", "diamond", "triangle", "down", "bar")
COLORS: Final = 7
"""Number of colors in the style sheet. The first is for the static model."""

Pair = tuple[float, float]


@dataclass(frozen=True)
class Value:
    """One value of a curve.

    Attributes:
        x: Position on the horizontal axis.
        y: Position on the vertical axis.
        interval: Interval of `y`, if there is one.
        text: Text of its tooltip.
    """

    x: float
    y: float
    interval: Pair | None
    text: str


@dataclass(frozen=True)
class Curve:
    """A named line of values.

    Attributes:
        name: Name in the legend.
        flags: The flags beside the name.
        color: Index of the color in the style sheet, from 0.
        dashed: Whether the line is dashed and its markers are hollow, as for natural images and
            published figures. Otherwise the line is solid, and its markers are filled.
        values: The values, in order of x.
    """

    name: str
    flags: Sequence[Flag]
    color: int
    dashed: bool
    values: Sequence[Value]


@dataclass(frozen=True)
class Tick:
    """A labeled position on an axis, in percent of the width or in pixels from the top."""

    at: float
    text: str


@dataclass(frozen=True)
class Marker:
    """A value as it is drawn: x in percent of the width, the rest in pixels from the top."""

    x: float
    y: float
    low: float | None
    high: float | None
    text: str


@dataclass(frozen=True)
class Drawn:
    """A curve as it is drawn.

    Attributes:
        curve: The curve.
        shape: Shape of its markers.
        dodge: Pixels by which it is moved sideways, so that no interval hides another.
        exact: Whether only its intervals are moved, and its markers stay at their values.
        markers: Its values.
    """

    curve: Curve
    shape: str
    dodge: float
    exact: bool
    markers: tuple[Marker, ...]

    @property
    def segments(self) -> list[tuple[Marker, Marker]]:
        """Pairs of consecutive markers."""
        return list(zip(self.markers, self.markers[1:], strict=False))


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Attributes:
        title: Title above the chart.
        alt: A description in words and numbers, for screen readers.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        x_ticks: Ticks of the horizontal axis, in percent of the width.
        y_ticks: Ticks of the vertical axis, in pixels.
        lines: The curves.
        zero: Position of 0 in pixels, if the vertical axis goes below 0.
        height: Height in pixels.
    """

    title: str
    alt: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Drawn, ...]
    zero: float | None = None
    height: float = HEIGHT


def chart(
    title: str,
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[tuple[float, str]],
    y_top: float | None = None,
    share: bool = False,
    numeric: bool = False,
) -> Chart:
    """Lay out a line chart. Its vertical axis begins at 0, or lower if a value is negative.

    Args:
        title: Title above the chart.
        curves: At least one curve, with at least one value in total.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        x_ticks: Values of x with their text. Their range is the range of the axis.
        y_top: Top of the vertical axis; by default the largest value or upper end of an interval.
        share: Whether y is a share. Its axis then goes from 0% to 100%, and `y_top` is ignored.
        numeric: Whether readers take x as a number from the axis. Then only intervals are moved
            sideways to make room for each other, and markers stay in place. Otherwise x is one of
            several places side by side, and markers move with their intervals.
    """
    tops = [value.interval[1] if value.interval else value.y for c in curves for value in c.values]
    lowest = min(value.y for curve in curves for value in curve.values)
    steps = (0.0, 0.25, 0.5, 0.75, 1.0) if share else nice_ticks(y_top or max(tops), lowest)
    low, high = min(x for x, _ in x_ticks), max(x for x, _ in x_ticks)

    dodge = 0.0
    if any(value.interval for curve in curves for value in curve.values):
        dodge = 2.5 if numeric else 6.0  # intervals stay close to markers that do not move

    def across(x: float) -> float:
        return 50.0 if high == low else round(100 * (x - low) / (high - low), 3)

    def down(y: float) -> float:
        return round(HEIGHT * (1 - min((y - steps[0]) / (steps[-1] - steps[0]), 1.0)), 2)

    return Chart(
        title=title,
        alt=_alt(title, curves, share=share),
        x_label=x_label,
        y_label=y_label,
        x_ticks=tuple(Tick(across(x), text) for x, text in x_ticks),
        y_ticks=tuple(Tick(down(y), f"{100 * y:.0f}%" if share else f"{y:g}") for y in steps),
        lines=tuple(
            Drawn(
                curve=curve,
                shape=SHAPES[curve.color % len(SHAPES)],
                dodge=dodge * (index - (len(curves) - 1) / 2),
                exact=numeric,
                markers=tuple(
                    Marker(
                        x=across(value.x),
                        y=down(value.y),
                        low=None if value.interval is None else down(value.interval[0]),
                        high=None if value.interval is None else down(value.interval[1]),
                        text=f"{curve.name}: {value.text}",
                    )
                    for value in curve.values
                ),
            )
            for index, curve in enumerate(curves)
        ),
        zero=down(0.0) if steps[0] < 0 else None,
    )


def nice_ticks(top: float, lowest: float = 0.0) -> tuple[float, ...]:
    """Return round, evenly spaced ticks that cover `lowest` to `top` and include 0.

    Args:
        top: The largest value.
        lowest: The smallest value. If it is above 0, the ticks begin at 0.
    """
    top, below = max(top, 0.0), max(-lowest, 0.0)
    if not top + below > 0:
        return (0.0, 0.5, 1.0)
    raw = (top + below) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999999)
    first, last = math.ceil(below / step - 1e-9), math.ceil(top / step - 1e-9)
    return tuple(float(f"{step * index:.12g}") for index in range(-first, last + 1))


def whole_ticks(last: int) -> list[tuple[float, str]]:
    """Return a few whole numbers from 0 to `last`, both included."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, last) if last <= 6 * step)
    values = [value for value in range(0, last, step) if last - value >= step / 2]
    return [(float(value), str(value)) for value in (*values, last)]


def thin(ticks: Sequence[tuple[float, str]], most: int = 8) -> list[tuple[float, str]]:
    """Drop ticks so that their labels do not overlap: keep every k-th, and the last."""
    if len(ticks) <= most:
        return list(ticks)
    step = math.ceil((len(ticks) - 1) / (most - 1))
    thinned = list(ticks[::step])
    if thinned[-1] != ticks[-1]:
        thinned[-1:] = [ticks[-1]]
    return thinned


def _alt(title: str, curves: Sequence[Curve], *, share: bool) -> str:
    def shown(value: float) -> str:
        return percent(value) if share else f"{value:.3g}"

    parts = [
        f"{curve.name} from {shown(curve.values[0].y)} to {shown(curve.values[-1].y)}"
        if len(curve.values) > 1
        else f"{curve.name} {shown(curve.values[0].y)}"
        for curve in curves
        if curve.values
    ]
    return f"Line chart. {title}: {'; '.join(parts)}. The numbers are in the table below."
