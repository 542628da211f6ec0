"""Print a result: the table, with every raised flag beside the headline."""

from collections.abc import Mapping, Sequence

from dent.cli import console
from dent.evaluation import DefenseResult, EvaluationResult
from dent.evaluation.results.intervals import LEVEL_TEXT
from dent.report import wording
from dent.report.flags import Flag, letters, of_one
from dent.report.headline import (
    BYSTANDERS,
    DIFFERENCE,
    OVER_VIEWS,
    WORST,
    Cell,
    Column,
    Row,
    headline,
)
from dent.report.limits import limits
from dent.support.plural import counted
from dent.support.printable import one_line


def show_result(result: EvaluationResult, out: str) -> None:
    """Print the table of a result, every raised flag, its limits, and the folder of the run."""
    spec = result.spec
    flags = of_one(result)
    table = headline(result, flags)
    images = f"{counted(result.samples, 'image')} of {spec.dataset.name}"
    attacked = f"{images}, {counted(result.batches, 'batch')}"
    titles = ["defense", *(column.title for column in table.columns)]
    by_defense = [_column(row, table.columns) for row in table.rows]
    # One column per defense, because there are few defenses and may be many submissions.
    header, *rows = zip(titles, *by_defense, strict=True)
    console.print_table(
        f"{spec.model.name} on {attacked}, {spec.threat.norm} eps {spec.threat.eps}",
        header,
        rows,
    )
    for name, defense in result.defenses.items():
        for sentence in wording.findings(defense):
            console.say(one_line(f"{name}: {sentence}"))
    if result.status == "partial":
        console.OUT.print(
            f"[bold]Partial:[/] {result.units_done} of {counted(result.units_planned, 'unit')}."
        )
    for flag in flags.all:
        raised_by = ", ".join(flag.raised_by)
        console.say(one_line(f"({flag.letter}) {raised_by}: {flag.sentence}"))
    _explain(result, mixed=table.has(BYSTANDERS))
    console.say(f"Records: {out}    Result: {out}/result.json")


def _column(row: Row, columns: Sequence[Column]) -> list[str]:
    cells = (_cell(column.key, row.cells[column.key]) for column in columns)
    return [row.defense + _marks(row.marks), *cells]


def _cell(key: str, cell: Cell) -> str:
    """Return the text of a figure, with interval and flags if it is one of the main figures."""
    if key not in (WORST, DIFFERENCE, OVER_VIEWS):
        text = f"{cell.text} *" if cell.carried else cell.text
        return f"{text} / {cell.beside}" if cell.beside else text
    return cell.full + (_marks(cell.marks) if cell.full else "")


def _marks(flags: Sequence[Flag]) -> str:
    return f" ({letters(flags)})" if flags else ""


def _explain(result: EvaluationResult, *, mixed: bool) -> None:
    console.say(
        "Robust accuracy: attacked images that the defense still classifies correctly when the "
        "whole batch is submitted again. "
        + ("After the slash: natural members of the same batches. " if mixed else "")
        + "Worst case: over everything submitted, per "
        + ", per ".join(
            f"{unit} ({', '.join(map(one_line, names))})"
            for unit, names in _units(result.defenses).items()
        )
        + f". Intervals: {LEVEL_TEXT}. Cost: one prediction, in static forwards."
    )
    if carried := wording.carried(result):
        console.say(f"* {one_line(carried)}")
    for sentence in limits(result):
        console.say(f"- {one_line(sentence)}")


def _units(defenses: Mapping[str, DefenseResult]) -> dict[str, list[str]]:
    units: dict[str, list[str]] = {}
    for name, defense in defenses.items():
        units.setdefault(defense.worst.unit, []).append(name)
    return units
