"""The page of the paper's tables: published and measured figures, and rulings on all claims."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from dent.evaluation.records.folder import RUN
from dent.evaluation.results.power import detectable_gain
from dent.evaluation.results.worst_case import MIN_CLUSTERS
from dent.paper.counts import RULINGS, Sentence, by_sentence, count_rulings
from dent.paper.figures import RATIO, figure, interval, measured, printed
from dent.paper.foreseen import Foreseen, foreseen
from dent.paper.labels import label
from dent.paper.load import load_roles
from dent.paper.planning import PaperPlan
from dent.paper.profile import PROFILE
from dent.paper.results import CellResult, ClaimRuling, TableResult, Unit
from dent.paper.runner import REPORT
from dent.paper.spec import Table, TableChart
from dent.report.charts import COLORS, Chart, Curve, Value, chart, thin
from dent.report.flags import Flag, letter
from dent.report.html import environment
from dent.storage.disk import write_atomically, writing
from dent.storage.protected import refuse_record
from dent.support.plural import counted

_IN_WORDS: Final[Mapping[Unit, str]] = {
    "%": "percentage points",
    "×": "static forwards",
    "s": "seconds",
    "pixels": "pixels",
    "GFLOPs": "GFLOPs",
}
"""The unit of a difference of two cells, in words."""


@dataclass(frozen=True)
class Links:
    """The links from a page to its runs.

    Attributes:
        out: The output folder.
        page: The folder of the page.
    """

    out: Path
    page: Path

    def of(self, run: str | None) -> str | None:
        """Return the link to a run's report, or else to its record; None if neither exists."""
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
        charts: Its charts that have a measured or published value.
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
    def rulings(self) -> Mapping[ClaimRuling, int]:
        """The number of distinct comparisons by ruling."""
        return count_rulings(self.result.judgements)

    @property
    def limits(self) -> tuple[Foreseen, ...]:
        """For each distinct comparison that its scale cannot decide, what was foreseen."""
        found = foreseen(self.plan)
        keys = [(each.claim, each.cells) for each in self.result.judgements if each.as_in is None]
        return tuple(found[key] for key in keys if key in found)

    @property
    def sentences(self) -> tuple[Sentence, ...]:
        """The paper's sentences about the table, with their rulings."""
        return by_sentence(self.result.judgements)

    @property
    def units(self) -> str:
        """The units of the differences of its claims, in words."""
        units = dict.fromkeys(
            judgement.unit
            for judgement in self.result.judgements
            if len(judgement.cells) > 1 and judgement.unit != RATIO
        )
        return " or ".join(_IN_WORDS[unit] for unit in units)

    @property
    def has_ratios(self) -> bool:
        """Whether one of its claims compares two cells by their ratio."""
        return any(judgement.unit == RATIO for judgement in self.result.judgements)

    def label(self, key: str) -> str:
        """Return the name of a cell by row and column, as printed in the paper."""
        return label(self.plan.table, key)


def write_page(
    plans: Sequence[PaperPlan], results: Sequence[TableResult], out: Path, page: Path
) -> Path:
    """Write the page about tables, from their plans and results only.

    Args:
        plans: The tables, all at one scale.
        results: The result of each table, from `summarize`.
        out: The output folder of `run_plans`. The page links to its runs.
        page: The file to write.

    Returns:
        `page`.

    Raises:
        ConfigError: The page would replace one of the records of a run.
        RecordError: The page cannot be written.
    """
    refuse_record(Path(page))
    text = to_page(plans, results, Links(Path(out), Path(page).parent))
    with writing(page):
        page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, text.encode())
    return page


def to_page(plans: Sequence[PaperPlan], results: Sequence[TableResult], links: Links) -> str:
    """Return the page as HTML; see `write_page`."""
    flags = _flags(results)
    templates = environment("dent.paper")
    templates.filters |= {
        "figure": figure,
        "range": interval,
        "printed": printed,
        "value": measured,
    }
    parts = [_part(plan, result, flags) for plan, result in zip(plans, results, strict=True)]
    total = {ruling: sum(part.rulings[ruling] for part in parts) for ruling in RULINGS}
    limits = Counter(limit for part in parts for limit in part.limits)
    return templates.get_template("paper.html.j2").render(
        parts=parts,
        scale=plans[0].scale,
        links=links,
        flags=flags,
        rulings=[each for each in RULINGS if total[each] or each != "not finished"],
        methods=_methods(results),
        detectable=_detectable(plans[0].scale.suite.samples),
        verdicts=_verdicts(results),
        shown=lambda ruling: "no gain shown" if ruling == "no gain" else ruling or "not run",
        MIN_CLUSTERS=MIN_CLUSTERS,
        marks_of=lambda names: [flags[name] for name in names],
        total=total,
        limits=limits,
    )


def _verdicts(results: Sequence[TableResult]) -> list[tuple[str, int]]:
    """Return each ruling of the suite's verdicts and how many runs have it, most frequent first."""
    ruled = {each.run: each.ruling for result in results for each in result.suite if each.ruling}
    return Counter(ruled.values()).most_common()


def _part(plan: PaperPlan, result: TableResult, flags: Mapping[str, Flag]) -> TablePart:
    cells = {f"{cell.row}/{cell.column}": cell for cell in result.cells}
    charts = (_chart(plan, spec, cells, flags) for spec in plan.table.charts)
    return TablePart(
        plan=plan,
        result=result,
        charts=tuple(drawn for drawn in charts if drawn is not None),
        cells=cells,
        models=tuple(_models(plan)),
        commands=_commands(plan.table, result),
    )


def _models(plan: PaperPlan) -> Iterable[str]:
    roles = load_roles()
    models = dict.fromkeys(
        (planned.model, planned.cell.model) for planned in plan.cells.values() if planned.model
    )
    for chosen, role in models:
        stands_for = f" stands for {roles[role].paper}" if chosen.stands_for else ""
        yield f"{chosen.name} on {chosen.dataset}{stands_for}"


def _commands(table: Table, result: TableResult) -> dict[str, tuple[str, ...]]:
    cells_by_command: dict[str, list[str]] = {}
    for cell in result.cells:
        if cell.command is not None:
            cells_by_command.setdefault(cell.command, []).append(
                label(table, f"{cell.row}/{cell.column}")
            )
    for suite_result in result.suite:
        name = f"dynamic suite, {label(table, suite_result.cell)}"
        cells_by_command.setdefault(suite_result.command, []).append(name)
    return {command: tuple(names) for command, names in cells_by_command.items()}


def _methods(results: Sequence[TableResult]) -> dict[str, int]:
    """Return every method of an interval with its number, in order of appearance."""
    methods = dict.fromkeys(
        judgement.method
        for result in results
        for judgement in result.judgements
        if judgement.method
    )
    return {method: number for number, method in enumerate(methods, start=1)}


def _detectable(samples: int) -> str:
    """Return a note on the gains that the suite cannot show with this number of samples."""
    gain = detectable_gain(samples)
    under = "" if gain is None else f" below {100 * gain:.0f} points"
    return f"{counted(samples, 'sample')}: too few to show a gain{under}"


def _flags(results: Sequence[TableResult]) -> dict[str, Flag]:
    """Return the flag of every raised diagnostic by its name, in order of appearance."""
    raised: dict[str, dict[str, None]] = {}
    for result in results:
        raisers = [(cell.flags, cell.defense) for cell in result.cells]
        raisers += [(suite_result.flags, suite_result.defense) for suite_result in result.suite]
        for names, defense in raisers:
            for name in names:
                raised.setdefault(name, {})[defense] = None
    return {
        name: Flag(
            letter=letter(index),
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
        values = _values(
            x, texts, [(cell.value, cell.interval) for cell in line_cells], line_cells[0].unit
        )
        in_paper = [(table.cells[key].value, None) for key in keys]
        published = _values(x, texts, in_paper, line_cells[0].unit)
        if values:
            curves.append(Curve(f"{name}, measured", marks, index % COLORS, False, values))
        if published:
            curves.append(Curve(f"{name}, paper", (), index % COLORS, True, published))
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
