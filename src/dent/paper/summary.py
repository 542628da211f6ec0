"""Derive the result of a table from the records in a folder, without running anything."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from dent.evaluation.records.folder import RUN
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.recorded_run import RecordedRun, load_run
from dent.evaluation.results.result import Count
from dent.paper.claims import judge
from dent.paper.defenses import defense_name
from dent.paper.foreseen import SENTENCES, foreseen
from dent.paper.measure import MeasuredCell, measure, of_profile
from dent.paper.planning import RUNS, PaperPlan, PlannedCell, PlannedRun
from dent.paper.profile import read_profile
from dent.paper.results import CellResult, Judgement, SuiteResult, TableResult, Unit
from dent.paper.rules import WORST_FIRST
from dent.paper.spec import Measure

_UNITS: Final[dict[Measure, Unit]] = {
    "robust": "%",
    "natural": "%",
    "transfer": "%",
    "relative-time": "×",
    "relative-flops": "×",
    "seconds": "s",
    "gflops": "GFLOPs",
    "sigma-before": "pixels",
    "sigma-after": "pixels",
}


@dataclass
class _Folder:
    """The run folders below an output folder, each read once."""

    out: Path

    def __post_init__(self) -> None:
        self._read: dict[str, RecordedRun | None] = {}

    def run(self, planned: PlannedRun) -> RecordedRun | None:
        """Return the records of a run; None if it was not started."""
        if planned.folder not in self._read:
            path = self.out / RUNS / planned.folder
            self._read[planned.folder] = load_run(path) if (path / RUN).is_file() else None
        return self._read[planned.folder]


def summarize(plan: PaperPlan, out: Path, said: Path | None = None) -> TableResult:
    """Return the result of a table, from the runs that exist.

    Args:
        plan: The table at its scale.
        out: The output folder of `run_plans`.
        said: The output folder that the commands name, if the records were moved; `out` by default.

    Raises:
        RecordError: Records are damaged.
        SchemaVersionError: Records were written by a newer torch-dent.
    """
    folder, said = _Folder(Path(out)), Path(said or out)
    measured = _measured(plan, folder)
    cells = tuple(_cells(plan, said, measured))
    suite = tuple(_suites(plan, folder, said))
    states = {cell.state for cell in cells} - {"not at this scale"}
    status: Literal["complete", "partial", "not run"] = "partial"
    if states == {"measured"} and all(
        _is_complete(folder.run(run)) for run in plan.suites.values()
    ):
        status = "complete"
    elif states == {"not run"}:
        status = "not run"
    table, scale = plan.table, plan.scale
    words = ["dent", "paper", table.id, "--scale", scale.id, "--out", str(said)]
    return TableResult(
        id=table.id,
        title=table.title,
        source=table.source,
        section=table.section,
        scale=scale.id,
        notes=table.notes,
        cells=cells,
        judgements=tuple(_judgements(plan, measured)),
        suite=suite,
        status=status,
        command=shlex.join(words),
    )


def _is_complete(recorded: RecordedRun | None) -> bool:
    return recorded is not None and recorded.result.status == "complete"


def _measured(plan: PaperPlan, folder: _Folder) -> dict[str, MeasuredCell]:
    measured: dict[str, MeasuredCell] = {}
    record = read_profile(folder.out / RUNS / plan.profile_folder) if plan.profile else None
    for key, planned in plan.cells.items():
        cell = None
        if plan.profile is not None and record is not None and not planned.why:
            cell = of_profile(planned, record, plan.profile.rounds)
        elif planned.run is not None:
            recorded = folder.run(planned.run)
            cell = None if recorded is None else measure(planned, recorded)
        if cell is not None:
            measured[key] = cell
    return measured


def _cells(
    plan: PaperPlan, out: Path, measured: Mapping[str, MeasuredCell]
) -> Iterator[CellResult]:
    first_cells: dict[object, str] = {}
    for key, planned in plan.cells.items():
        cell, cell_measured = planned.cell, measured.get(key)
        row, _, column = key.partition("/")
        state: Literal["measured", "partial", "not run", "not at this scale"] = "not run"
        if planned.why:
            state = "not at this scale"
        if cell_measured is not None:
            state = "partial" if cell_measured.partial else "measured"
        run = None if planned.run is None else f"{RUNS}/{planned.run.folder}"
        command = None if planned.run is None else planned.run.command(out)
        model = planned.model.name if planned.model is not None else ""
        if plan.profile is not None and not planned.why:
            run, model = f"{RUNS}/{plan.profile_folder}", plan.profile.model
        yield CellResult(
            row=row,
            column=column,
            published=cell.published,
            unit=_UNITS[cell.measure],
            value=None if cell_measured is None else cell_measured.value,
            interval=None if cell_measured is None else cell_measured.interval,
            count=None
            if cell_measured is None or not cell_measured.right
            else _count(cell_measured),
            state=state,
            why=planned.why,
            model=model,
            stands_for=planned.model.stands_for if planned.model is not None else "",
            defense=defense_name(cell.defense),
            attacks=planned.attacks,
            flags=() if cell_measured is None else cell_measured.flags,
            run=run,
            command=command,
            as_in=_earlier(first_cells, planned, key),
        )


def _evidence(planned: PlannedCell) -> object:
    """Return a key that two cells share if and only if they are the same piece of evidence."""
    return planned.run, planned.defense_name, planned.attacks, planned.cell.measure


def _earlier(first_cells: dict[object, str], planned: PlannedCell, key: str) -> str | None:
    if planned.run is None:
        return None
    first = first_cells.setdefault(_evidence(planned), key)
    return None if first == key else first


def _count(cell: MeasuredCell) -> Count:
    return Count.of(sum(cell.right.values()), len(cell.right))


def _judgements(plan: PaperPlan, measured: Mapping[str, MeasuredCell]) -> Iterator[Judgement]:
    limits = foreseen(plan)
    for claim in plan.table.claims:
        same_runs: dict[object, list[Judgement]] = {}
        all_cells: list[tuple[str, ...]] = [*claim.compared(), *((cell,) for cell in claim.cells)]
        judged = []
        for cells in all_cells:
            unit = _UNITS[plan.table.cells[cells[0]].measure]
            judgement = judge(plan.table, claim, cells, measured, unit)
            if (limit := limits.get((claim.id, cells))) is not None:
                sentence = f"{judgement.sentence} {SENTENCES[limit]}"
                judgement = judgement.model_copy(update={"sentence": sentence})
            runs: object = tuple(_evidence(plan.cells[cell]) for cell in cells)
            group = same_runs.setdefault(cells if plan.profile else runs, [])
            group.append(judgement)
            judged.append((judgement, group))
        for judgement, group in judged:
            counts = min(group, key=lambda each: WORST_FIRST.index(each.ruling))
            as_in = None if counts is judgement else " and ".join(counts.cells)
            yield judgement.model_copy(update={"as_in": as_in})


def _suites(plan: PaperPlan, folder: _Folder, said: Path) -> Iterator[SuiteResult]:
    first_cells: dict[PlannedRun, str] = {}
    for key, run in plan.suites.items():
        recorded = folder.run(run)
        first = first_cells.setdefault(run, key)
        defense = None if recorded is None else recorded.result.defenses.get(run.defense_name)
        static = None if recorded is None else recorded.result.defenses.get(STATIC)
        verdict = None if defense is None else defense.verdict
        yield SuiteResult(
            cell=key,
            model=run.model.name,
            defense=run.defense_name,
            threat=run.threat.label,
            budget=run.suite or "",
            samples=run.samples,
            static=None if static is None else static.worst.served,
            worst=None if defense is None else defense.worst.served,
            difference=None if defense is None else defense.difference,
            ruling=None if verdict is None else verdict.ruling,
            sentence="Not run." if verdict is None else verdict.sentence,
            flags=() if defense is None else tuple(flag.name for flag in defense.raised),
            run=f"{RUNS}/{run.folder}",
            command=run.command(said),
            as_in=None if first == key else first,
            decided=None if defense is None else defense.decided,
        )
