"""Print the paper's tables: a list of them, the progress of their runs, and their results."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dent.cli import console, runner
from dent.cli.output.paper_costs import Timer, announce, seconds_left
from dent.evaluation import Progress
from dent.evaluation.results.intervals import LEVEL_TEXT
from dent.paper import (
    CellResult,
    Judgement,
    PaperPlan,
    TableResult,
    load_table,
    run_plans,
    scale_names,
    table_names,
)
from dent.paper.figures import figure, interval, measured, printed
from dent.paper.labels import label, label_of
from dent.paper.runner import Loader
from dent.support.durations import duration
from dent.support.plural import counted


def show_list(*, as_json: bool) -> None:
    """Print the list of tables."""
    tables = [load_table(name) for name in table_names()]
    if as_json:
        console.print_json(
            [
                {
                    "id": table.id,
                    "title": table.title,
                    "source": table.source,
                    "section": table.section,
                    "cells": len(table.cells),
                    "claims": len(table.claims),
                }
                for table in tables
            ]
        )
        return
    for table in tables:
        console.say(f"{table.id:10} {table.source}: {table.title}")
    console.say(f"Scales: {', '.join(scale_names())}. Run one: dent paper table4 --scale cpu")


def run(
    plans: Sequence[PaperPlan], folder: Path, loader: Loader, timed: Timer | None = None
) -> dict[str, str]:
    """Run the missing runs with a progress bar; return those that failed, with the reason.

    Args:
        plans: The tables.
        folder: The output folder.
        loader: The loader.
        timed: Times a model, to print the cost before and during the runs; None prints no cost.
    """
    names, later = _names(plans), dict[str, float | None]()
    if timed is not None:
        announce(plans, folder, timed)
        later = seconds_left(plans, folder, timed)
    try:
        with runner.progress() as bar:

            def watch(done: int, total: int, name: str, state: Progress | None) -> None:
                later.pop(name, None)
                if state is not None:
                    table, row = names[name]
                    bar(state, f"{table}, run {done + 1} of {total} ({row}):", _later(later))

            return run_plans(plans, folder, loader, watch=watch)
    except KeyboardInterrupt:
        console.note(f"\nStopped. The records are in {folder}. The same command resumes the runs.")
        raise


def show_skipped(missing: Mapping[str, str]) -> None:
    """Print why runs were skipped, each reason once."""
    names: dict[str, list[str]] = {}
    for name, reason in missing.items():
        names.setdefault(reason, []).append(name)
    for reason, runs in names.items():
        console.note(f"{counted(len(runs), 'run')} skipped: {reason}", style="red")


def show_table(plan: PaperPlan, result: TableResult) -> None:
    """Print published and measured figures side by side, then the rulings."""
    title = f"{result.source}: {result.title}"
    if result.status == "not run":
        console.say(f"{title}: not run. To run it: {result.command}")
        return
    rows = [_row(plan, cell) for cell in result.cells]
    console.print_table(title, ("cell", "paper", f"measured [{LEVEL_TEXT}]", "flags"), rows)
    if result.status == "partial":
        console.say(f"Not finished. To resume it: {result.command}")
    said = ""
    for judgement in result.judgements:
        if judgement.as_in is None:
            if judgement.says != said:
                said = judgement.says
                console.say(f"Claim: {said}")
            console.say(f"  {_judged(plan, judgement)}")
    for suite_result in result.suite:
        if suite_result.as_in is None:
            name = label(plan.table, suite_result.cell)
            console.say(f"Dynamic suite, {name}: {suite_result.sentence}")


def _names(plans: Sequence[PaperPlan]) -> dict[str, tuple[str, str]]:
    """Return, for each run's folder, a table that needs the run, and one of the run's cells."""
    names: dict[str, tuple[str, str]] = {}
    for plan in plans:
        # The cell with the robust accuracy describes a run best.
        cells = sorted(plan.cells.items(), key=lambda item: item[1].cell.measure != "robust")
        for key, cell in cells:
            if cell.run is not None:
                names.setdefault(cell.run.folder, (plan.table.id, label(plan.table, key)))
        for key, suite_run in plan.suites.items():
            name = f"dynamic suite, {label(plan.table, key)}"
            names.setdefault(suite_run.folder, (plan.table.id, name))
    return names


def _later(seconds: Mapping[str, float | None]) -> str:
    """Return a text about the duration of the later runs, if it is known."""
    known = [value for value in seconds.values() if value is not None]
    if not known or len(known) < len(seconds):
        return "in this run"
    return f"in this run, at most {duration(sum(known))} in the later runs"


def _row(plan: PaperPlan, cell: CellResult) -> tuple[str, str, str, str]:
    key = f"{cell.row}/{cell.column}"
    found: str = cell.state
    if cell.value is not None:
        bounds = interval(cell.interval, cell.unit)
        found = f"{figure(cell.value, cell.unit)} {bounds}".strip()
    flags = [f"same run as {label(plan.table, cell.as_in)}"] if cell.as_in else [*cell.flags]
    if cell.state == "partial":
        planned = plan.cells[key].run
        of = f", {cell.count.total} of {planned.samples}" if cell.count and planned else ""
        flags.insert(0, f"partial{of}")
    return label(plan.table, key), cell.published, found, ", ".join(flags)


def _judged(plan: PaperPlan, judgement: Judgement) -> str:
    bounds = interval(judgement.interval, judgement.unit)
    found = f"{measured(judgement)} {bounds}".strip()
    name = label_of(plan.table, judgement.cells)
    return f"{judgement.ruling}: {found}, paper {printed(judgement)}; {name}"
