"""Figures for a README: accuracies and entropy of a run, and the accuracy of a stream."""

import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dent.errors import ConfigError
from dent.evaluation.results.intervals import LEVEL_TEXT
from dent.evaluation.results.recorded_run import load_run
from dent.evaluation.results.result import EvaluationResult
from dent.report import wording
from dent.report.flags import Flag, Flags, letters, of_one
from dent.report.headline import NATURAL, WORST, Cell, Headline, headline
from dent.report.limits import limits
from dent.report.plots import color_of, strongest
from dent.storage.disk import write_atomically, writing
from dent.support.plural import counted

if TYPE_CHECKING:
    from dent.evaluation.streams import StreamResult

SUFFIXES: Final = (".png", ".svg")
_COLORS: Final = ("#57606a", "#0b62ab", "#c04a00", "#00795a", "#9c3f7a", "#8a6a00", "#2b84b5")
_MARKERS: Final = ("o", "s", "D", "^", "v", "P", "X")
_SOFT: Final = "#57606a"
_WIDTH: Final = 9.0
_ROW, _BASE, _LINE = 0.55, 1.75, 0.145
_CHARACTERS: Final = 165
_STYLE: Any = {
    "svg.hashsalt": "dent",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _SOFT,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "savefig.facecolor": "white",
}


_STYLES: Final[tuple[tuple[Literal["--", "-"], str], ...]] = (("--", "white"), ("-", _SOFT))
_Steps = tuple[str, tuple[float, ...], bool]


def figure(run: Path | EvaluationResult, out: Path) -> Path:
    """Draw one figure of one run, for a README.

    On the left are the clean and worst-case robust accuracy of every defense, with their confidence
    intervals. On the right is the entropy of defenses that report their steps, on natural batches
    and under the strongest attack. Flags are letters beside the names. They are explained below,
    with the first sentences of `limits`. The worst case of a defense on which the run stopped early
    points to lower values, and is labeled *at most*. Equal results give an equal file.

    Args:
        run: A run folder, or a result.
        out: A `.png` or `.svg` file, replaced if it exists.

    Returns:
        `out`.

    Raises:
        ConfigError: `out` does not end in `.png` or `.svg`.
        RecordError: The run cannot be read, or `out` cannot be written.
        SchemaVersionError: The run was written by a newer torch-dent.
    """
    out = _checked(out)
    result = run if isinstance(run, EvaluationResult) else load_run(Path(run)).result
    return _save(lambda: _draw(result), out)


def stream_figure(result: "StreamResult", out: Path) -> Path:
    """Draw the accuracy of a stream by batch.

    One curve is for the stream without an attack, one for the attacked stream, and one for the same
    images with a reset before each batch. The attacked batches are shaded. Equal results give an
    equal file.

    Args:
        result: The result of `dent.evaluation.stream`.
        out: A `.png` or `.svg` file, replaced if it exists.

    Returns:
        `out`.

    Raises:
        ConfigError: `out` does not end in `.png` or `.svg`.
        RecordError: `out` cannot be written.
    """
    return _save(lambda: _draw_stream(result), _checked(out))


def _checked(out: Path) -> Path:
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"a figure's file name must end in {' or '.join(SUFFIXES)}, got {out.name!r}"
        )
    return out


def _save(draw: Callable[[], Figure], out: Path) -> Path:
    content = io.BytesIO()
    with mpl.rc_context(_STYLE):
        drawing = draw()
        kind = out.suffix.lower().removeprefix(".")
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        drawing.savefig(content, format=kind, dpi=160, metadata=metadata)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, content.getvalue())
    return out


def _draw_stream(result: "StreamResult") -> Figure:
    drawing = Figure(figsize=(_WIDTH, 3.4))
    FigureCanvasAgg(drawing)
    axes: Any = drawing.subplots()
    attacked = sum(batch.attacked for batch in result.batches)
    axes.axvspan(0.5, attacked + 0.5, color="#f0e6d8", linewidth=0)
    at = range(1, len(result.batches) + 1)
    lines = (
        ("unattacked stream", "--", [batch.unattacked.share for batch in result.batches]),
        ("attacked stream", "-", [batch.served.share for batch in result.batches]),
        ("reset before each batch", ":", [batch.after_reset.share for batch in result.batches]),
    )
    for index, (name, style, shares) in enumerate(lines):
        color, marker = _COLORS[index], _MARKERS[index]
        axes.plot(at, shares, ls=style, color=color, marker=marker, markersize=4, label=name)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100%"])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("batch of the stream; the attacker's are shaded")
    axes.set_ylabel("accuracy as served")
    axes.grid(axis="y", color="#d5dae0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, frameon=False, fontsize=8)
    drawing.tight_layout()
    return drawing


def _draw(result: EvaluationResult) -> Figure:
    flags = of_one(result)
    table = headline(result, flags)
    names = {row.defense: f"{row.defense}{_marks(row.marks)}" for row in table.rows}
    notes = _footnotes(result, flags)
    foot = _LINE * len(notes) + 0.12
    height = max(_BASE + _ROW * len(names), 2.9) + foot
    drawing = Figure(figsize=(_WIDTH, height))
    FigureCanvasAgg(drawing)
    curves = _curves(result)
    plots = drawing.subplots(1, 2 if curves else 1, squeeze=False)[0]
    _accuracies(plots[0], result, table, names)
    if curves:
        _entropies(plots[1], result, curves)
    title = wording.title(result.spec)
    if result.status == "partial":
        title += f" (not finished: {result.units_done} of {counted(result.units_planned, 'unit')})"
    drawing.suptitle(textwrap.shorten(title, 110), x=0.012, ha="left", fontsize=11, weight="bold")
    drawing.text(
        0.012,
        0.06 / height,
        "\n".join(notes),
        ha="left",
        va="bottom",
        fontsize=7.2,
        color="#333",
        linespacing=1.3,
    )
    drawing.tight_layout(rect=(0, foot / height, 1, 1), w_pad=3.0)
    return drawing


def _accuracies(
    axes: Any, result: EvaluationResult, table: Headline, names: dict[str, str]
) -> None:
    for y, row in enumerate(table.rows):
        color = _COLORS[color_of(result, row.defense)]
        _figure(axes, row.cells[NATURAL], y - 0.14, color, hollow=True)
        _figure(axes, row.cells[WORST], y + 0.14, color, hollow=False)
    axes.set_yticks(range(len(names)), [_shorten(name) for name in names.values()])
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color(_COLORS[color_of(result, name)])
        label.set_fontweight("bold")
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100%"])
    axes.grid(axis="x", color="#d5dae0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"accuracy, with {LEVEL_TEXT} intervals")
    kinds = [("clean", "o", "white"), ("worst case", "o", _SOFT)]
    if any(row.cells[WORST].bound for row in table.rows):
        kinds.append(("worst case, at most", "<", _SOFT))
    handles = [
        Line2D([], [], marker=marker, color=_SOFT, linestyle="", mfc=fill)
        for _, marker, fill in kinds
    ]
    _legend(axes, handles, [name for name, *_ in kinds])


def _figure(axes: Any, cell: Cell, y: float, color: str, *, hollow: bool) -> None:
    if cell.value is None or cell.interval is None:
        axes.text(0.01, y, cell.text, va="center", fontsize=7.5, color=_SOFT)
        return
    low, high = cell.interval
    # Of an upper bound, the marker points to where the value may be.
    low, marker = (cell.value, "<") if cell.bound else (low, "o")
    axes.plot((low, high), (y, y), color=color, linewidth=3.5, alpha=0.4)
    fill = "white" if hollow else color
    axes.plot([cell.value], [y], marker=marker, color=color, markerfacecolor=fill, zorder=3)
    axes.annotate(
        cell.shown + _marks(cell.marks),
        (cell.value, y),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
        color=color,
    )


def _marks(flags: Sequence[Flag]) -> str:
    return f" [{letters(flags)}]" if flags else ""


def _curves(result: EvaluationResult) -> list[_Steps]:
    """Return the curves: defense, entropy by step, and whether the batches are natural."""
    curves = []
    for name, defense in result.defenses.items():
        worst = strongest(defense)
        traces = [(defense.trace, True)] + ([] if worst is None else [(worst.trace, False)])
        curves += [
            (name, trace.entropy, natural)
            for trace, natural in traces
            if trace.entropy is not None and len(trace.entropy) > 1
        ]
    return curves


def _entropies(axes: Any, result: EvaluationResult, curves: Sequence[_Steps]) -> None:
    for name, entropy, natural in curves:
        color = color_of(result, name)
        axes.plot(
            range(len(entropy)),
            entropy,
            color=_COLORS[color],
            markerfacecolor="white" if natural else _COLORS[color],
            linestyle="--" if natural else "-",
            marker=_MARKERS[color],
            markersize=4,
            linewidth=1.6,
        )
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("adaptation steps")
    axes.set_ylabel("mean entropy in nats")
    axes.grid(axis="y", color="#d5dae0", linewidth=0.8)
    axes.set_axisbelow(True)
    styles = [
        Line2D([], [], color=_SOFT, ls=line, marker="o", markersize=4, markerfacecolor=fill)
        for line, fill in _STYLES
    ]
    _legend(axes, styles, ["natural batches", "adversarial batches"])


def _legend(axes: Any, handles: Sequence[Line2D], labels: Sequence[str]) -> None:
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=len(labels),
        frameon=False,
        fontsize=8,
        borderaxespad=0.2,
        columnspacing=1.2,
    )


def _footnotes(result: EvaluationResult, flags: Flags) -> list[str]:
    units: dict[str, list[str]] = {}
    for name, defense in result.defenses.items():
        units.setdefault(defense.worst.unit, []).append(name)
    per = "; ".join(f"per {unit}: {', '.join(names)}" for unit, names in units.items())
    sentences = [f"Worst case over all submissions, {per}."]
    if _curves(result):
        sentences[0] += " Colors are as on the left."
    sentences += [
        f"[{flag.letter}] {flag.name} ({', '.join(flag.raised_by)}): {flag.sentence}"
        for flag in flags.all
    ]
    stopped = any(defense.decided is not None for defense in result.defenses.values())
    sentences += limits(result)[: 2 + (result.status == "partial") + stopped]
    return [line for sentence in sentences for line in textwrap.wrap(sentence, _CHARACTERS)]


def _shorten(text: str, most: int = 34) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
