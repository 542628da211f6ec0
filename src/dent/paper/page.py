"""The page: every table, published beside measured, with the verdict on every claim."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Final, get_args
from urllib.parse import quote

from dent.evaluation.records.folder import RUN
from dent.paper.load import load_roles
from dent.paper.planning import PaperPlan
from dent.paper.profile import PROFILE
from dent.paper.results import CellResult, Judgement, Ruling, SuiteResult, TableResult, Unit
from dent.paper.runner import REPORT
from dent.paper.spec import TableChart
from dent.report.charts import COLOURS, Chart, Curve, Value, chart, thin
from dent.report.flags import Flag
from dent.report.html import environment
from dent.storage.disk import write_atomically, writing
from dent.support.rounding import MINUS, PLACES

RULINGS: Final[tuple[Ruling, ...]] = get_args(Ruling)
_PLACES: Final[Mapping[Unit, str]] = {"%": PLACES, "×": PLACES, "s": ".3g", "pixels": ".3f"}
_IN_WORDS: Final[Mapping[Unit, str]] = {
    "%": "percentage points",
    "×": "static forwards",
    "s": "seconds",
    "pixels": "pixels",
    "GFLOPs": "GFLOPs",
}
"""The unit of a difference of two cells."""


@dataclass(frozen=True)
class Links:
    """The links from a page to its runs.

    Attributes:
        out: The output folder.
        page: The page's own folder.
    """

    out: Path
    page: Path

    def of(self, run: str | None) -> str | None:
        """Return the address of a run's report, or of its record; None if there is neither."""
        if run is None:
            return None
        for name in (REPORT, RUN, PROFILE):
            path = self.out / run / name
            if path.is_file():
                return quote(os.path.relpath(path.resolve(), self.page.resolve()))
        return None


@dataclass(frozen=True)
class TablePart:
    """The parts of a page about one table.

    Attributes:
        plan: The table at its scale.
        result: The result of the table.
        charts: Its charts with any measured or published value.
        cells: The cells by `row/column`.
        models: Sentences about which model replaces which model of the paper.
        commands: For each command, the cells that come from its run.
    """

    plan: PaperPlan
    result: TableResult
    charts: tuple[Chart, ...]
    cells: Mapping[str, CellResult]
    models: tuple[str, ...]
    commands: Mapping[str, tuple[str, ...]]

    @property
    def rulings(self) -> Mapping[Ruling, int]:
        """The number of claims by ruling; the same records count once a claim."""
        counts = Counter(
            judgement.ruling for judgement in self.result.judgements if judgement.as_in is None
        )
        return {ruling: counts[ruling] for ruling in RULINGS}

    @property
    def units(self) -> str:
        """The units of the differences of its claims, in words."""
        units = dict.fromkeys(
            judgement.unit for judgement in self.result.judgements if len(judgement.cells) > 1
        )
        return " or ".join(_IN_WORDS[unit] for unit in units)

    def label(self, key: str) -> str:
        """Return the name of a cell by row and column, as printed in the paper."""
        row, _, column = key.partition("/")
        rows = {table_row.id: table_row for table_row in self.plan.table.rows}
        columns = {table_column.id: table_column.label for table_column in self.plan.table.columns}
        table_row = rows[row]
        row_label = f"{table_row.group}, {table_row.label}" if table_row.group else table_row.label
        return f"{row_label}: {columns[column]}"


def write_page(
    plans: Sequence[PaperPlan], results: Sequence[TableResult], out: Path, page: Path
) -> Path:
    """Write the page about tables, from their results alone.

    Args:
        plans: The tables.
        results: The result of each (`summarize`).
        out: The folder that `run_plans` was given, whose runs the page links to.
        page: The file to write.

    Returns:
        `page`.

    Raises:
        RecordError: It cannot be written.
    """
    text = to_page(plans, results, Links(Path(out), Path(page).parent))
    with writing(page):
        page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, text.encode())
    return page


def to_page(plans: Sequence[PaperPlan], results: Sequence[TableResult], links: Links) -> str:
    """The page as HTML; see `write_page`."""
    flags = _flags(results)
    templates = environment("dent.paper")
    templates.filters |= {"figure": figure, "range": interval, "signed": signed}
    parts = [_part(plan, result, flags) for plan, result in zip(plans, results, strict=True)]
    return templates.get_template("paper.html.j2").render(
        parts=parts,
        scale=plans[0].scale,
        links=links,
        flags=flags,
        rulings=RULINGS,
        marks_of=lambda names: [flags[name] for name in names],
        total={ruling: sum(part.rulings[ruling] for part in parts) for ruling in RULINGS},
    )


def figure(value: float, unit: Unit) -> str:
    """`62.1`, `25.3×`, `0.213 s`: percent without its sign, as the paper's tables have it."""
    text = format(value, _PLACES.get(unit, ".4g"))
    return text + {"×": "×", "s": " s"}.get(unit, "")


def signed(value: float, unit: Unit) -> str:
    """Return a difference with its sign: `+15.2`; without a sign if it rounds to 0."""
    text = format(value, f"+{_PLACES.get(unit, '.4g')}")
    return (text if float(text) else text[1:]).replace("-", MINUS)


def interval(bounds: tuple[float, float] | None, unit: Unit) -> str:
    """`[53.1, 70.2]`; empty where there is none."""
    if bounds is None:
        return ""
    low, high = (format(bound, _PLACES.get(unit, ".4g")) for bound in bounds)
    return f"[{low}, {high}]".replace("-", MINUS)


def _part(plan: PaperPlan, result: TableResult, flags: Mapping[str, Flag]) -> TablePart:
    cells = {f"{cell.row}/{cell.column}": cell for cell in result.cells}
    charts = (_chart(plan, spec, cells, flags) for spec in plan.table.charts)
    return TablePart(
        plan=plan,
        result=result,
        charts=tuple(drawn for drawn in charts if drawn is not None),
        cells=cells,
        models=tuple(_models(plan)),
        commands=_commands(result.cells, result.suite),
    )


def _models(plan: PaperPlan) -> Iterable[str]:
    roles = load_roles()
    models = dict.fromkeys(
        (planned.model, planned.cell.model) for planned in plan.cells.values() if planned.model
    )
    for chosen, role in models:
        stands_for = f" stands for {roles[role].paper}" if chosen.stands_for else ""
        yield f"{chosen.name} on {chosen.dataset}{stands_for}"


def _commands(
    cells: Sequence[CellResult], suite: Sequence[SuiteResult]
) -> dict[str, tuple[str, ...]]:
    cells_by_command: dict[str, list[str]] = {}
    for cell in cells:
        if cell.command is not None:
            cells_by_command.setdefault(cell.command, []).append(f"{cell.row}/{cell.column}")
    for suite_result in suite:
        cells_by_command.setdefault(suite_result.command, []).append(f"suite, {suite_result.cell}")
    return {command: tuple(names) for command, names in cells_by_command.items()}


def _flags(results: Sequence[TableResult]) -> dict[str, Flag]:
    """Return every raised diagnostic with a letter, in the order of the page."""
    raised: dict[str, dict[str, None]] = {}
    for result in results:
        raisers = [(cell.flags, cell.defense) for cell in result.cells]
        raisers += [(suite_result.flags, suite_result.defense) for suite_result in result.suite]
        for names, defense in raisers:
            for name in names:
                raised.setdefault(name, {})[defense] = None
    return {
        name: Flag(
            letter=ascii_lowercase[index % len(ascii_lowercase)],
            name=name,
            sentence="See docs/evaluation/protocol.md, section 5.",
            raised_by=tuple(raised[name]),
        )
        for index, name in enumerate(raised)
    }


def _chart(
    plan: PaperPlan, spec: TableChart, cells: Mapping[str, CellResult], flags: Mapping[str, Flag]
) -> Chart | None:
    table, down = plan.table, spec.along == "columns"
    names = {row.id: row.label for row in table.rows}
    names |= {column.id: column.label for column in table.columns}
    groups = {row.id: row.group for row in table.rows}
    lines, places = (spec.rows, spec.columns) if down else (spec.columns, spec.rows)
    x = spec.x or tuple(float(position) for position in range(len(places)))
    texts = [
        f"{position:g}" if spec.x else names[place]
        for position, place in zip(x, places, strict=True)
    ]
    curves: list[Curve] = []
    for index, line in enumerate(lines):
        keys = [f"{line}/{place}" if down else f"{place}/{line}" for place in places]
        line_cells = [cells[key] for key in keys]
        name = ", ".join(filter(None, (groups.get(line), names[line])))
        marks = [
            flags[flag] for flag in dict.fromkeys(f for cell in line_cells for f in cell.flags)
        ]
        measured = _values(
            x, texts, [(cell.value, cell.interval) for cell in line_cells], line_cells[0].unit
        )
        printed = [(table.cells[key].value, None) for key in keys]
        published = _values(x, texts, printed, line_cells[0].unit)
        if measured:
            curves.append(Curve(f"{name}, measured", marks, index % COLOURS, False, measured))
        if published:
            curves.append(Curve(f"{name}, paper", (), index % COLOURS, True, published))
    if not curves:
        return None
    unit = cells[f"{spec.rows[0]}/{spec.columns[0]}"].unit
    share = unit == "%"
    return chart(
        spec.title,
        curves,
        x_label=spec.x_label,
        y_label="accuracy" if share else _IN_WORDS[unit],
        x_ticks=thin(list(zip(x, texts, strict=True)), most=12),
        share=share,
        numeric=spec.x is not None,
    )


def _values(
    x: Sequence[float],
    texts: Sequence[str],
    points: Sequence[tuple[float | None, tuple[float, float] | None]],
    unit: Unit,
) -> list[Value]:
    scale = 100.0 if unit == "%" else 1.0
    return [
        Value(
            position,
            value / scale,
            None if bounds is None else (bounds[0] / scale, bounds[1] / scale),
            f"{text}: {figure(value, unit)} {interval(bounds, unit)}".strip(),
        )
        for position, text, (value, bounds) in zip(x, texts, points, strict=True)
        if value is not None
    ]


def told(judgement: Judgement) -> str:
    """Return a judgement as one line, for a terminal."""
    measured = "not measured"
    if judgement.measured is not None:
        write = figure if len(judgement.cells) == 1 else signed
        measured = write(judgement.measured, judgement.unit)
    return f"{measured} {interval(judgement.interval, judgement.unit)}".strip()
