"""The results table as a picture: the gain of a defense under each kind of attack."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_GAIN, _NOTHING, _LOSS = "#00795a", "#57606a", "#c04a00"
_STYLE: Any = {
    "svg.hashsalt": "dent",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}
_ROW: Final = 0.27


@dataclass(frozen=True)
class Row:
    """One line of the picture.

    Attributes:
        defense: Name of the defense.
        attacked: Name of the attack.
        value: Robust accuracy minus that of the static model, in percentage points.
        interval: 95% interval of the difference, in percentage points.
        bound: Whether the run stopped early, so that the value is an upper bound.
    """

    defense: str
    attacked: str
    value: float
    interval: tuple[float, float]
    bound: bool = False

    @property
    def color(self) -> str:
        """The color: for a gain, a loss, or an interval that contains 0."""
        low, high = self.interval
        return _GAIN if low > 0 else _LOSS if high < 0 else _NOTHING


def draw(rows: Sequence[Row], out: Path) -> None:
    """Draw differences with their intervals, one line each, into an SVG file."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.0, 0.9 + _ROW * len(rows)))
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.axvline(0, color=_NOTHING, linewidth=1)
        for y, row in enumerate(rows):
            low, high = row.interval
            # Of an upper bound, the marker points to where the value may be.
            low, marker = (row.value, "<") if row.bound else (low, "o")
            axes.plot((low, high), (y, y), color=row.color, linewidth=3, alpha=0.45)
            axes.plot([row.value], [y], marker=marker, color=row.color)
        labels = [
            f"{row.defense}  by  {row.attacked}{', at most' if row.bound else ''}" for row in rows
        ]
        axes.set_yticks(range(len(rows)), labels)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.grid(axis="x", color="#d5dae0", linewidth=0.8)
        axes.set_axisbelow(True)
        figure.supxlabel(
            "robust accuracy minus that of the static model, in points, with 95% intervals",
            fontsize=9.0,
        )
        figure.tight_layout()
        figure.savefig(out, format="svg", metadata={"Date": None})
