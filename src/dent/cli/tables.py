"""Tables of the paper in a terminal: which there are, what they take, and what came out."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.markup import escape

from dent.cli import running
from dent.cli.console import ERR, OUT, print_json, print_table
from dent.cli.durations import lasting
from dent.evaluation import Progress
from dent.evaluation.records.folder import RESULT
from dent.evaluation.results.intervals import LEVEL_TEXT
from dent.paper import (
    PaperPlan,
    PlannedRun,
    TableResult,
    load_table,
    run_plans,
    scale_names,
    table_names,
)
from dent.paper.estimate import PlanCost, plan_cost, profile_forwards, undone
from dent.paper.page import figure, interval, told
from dent.paper.planning import RUNS
from dent.paper.runner import Loader
from dent.paper.scales import Chosen
from dent.support.plural import counted

Timer = Callable[[Chosen], float | None]
"""Returns the seconds of a model's forward of one image, or None if they cannot be measured."""


def listed(*, as_json: bool) -> None:
    """Print which tables there are."""
    tables = [load_table(name) for name in table_names()]
    if as_json:
        print_json(
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
        OUT.print(f"{table.id:10} {table.source}: {table.title}", markup=False, soft_wrap=True)
    OUT.print(f"Scales: {', '.join(scale_names())}. Run one: dent paper table4 --scale cpu")


def _is_done(folder: Path, run: PlannedRun) -> bool:
    return (folder / RUNS / run.folder / RESULT).is_file()


def estimated(plans: Sequence[PaperPlan], folder: Path, timed: Timer, *, as_json: bool) -> None:
    """Print what tables take, one by one and together."""
    costs: dict[str, PlanCost] = {}
    for plan in plans:
        costs[plan.table.id] = _cost([plan], folder, timed)
    costs["together"] = _cost(plans, folder, timed)
    if as_json:
        print_json(
            [
                {
                    "id": name,
                    "runs": cost.runs,
                    "forwards": cost.forwards,
                    "seconds": cost.seconds,
                    "missing": cost.missing,
                }
                for name, cost in costs.items()
            ]
        )
        return
    rows = [
        (name, str(cost.runs), f"{cost.forwards / 1e6:.1f}", _time(cost))
        for name, cost in costs.items()
    ]
    columns = ("table", "runs to do", "million forwards", "at most")
    print_table("Cost", columns, rows)
    for plan in plans:
        if plan.profile is not None:
            OUT.print(
                f"{plan.table.id} is a profile, not an evaluation: "
                f"{profile_forwards(plan):.0f} forwards of {plan.profile.model} at "
                f"{plan.profile.size} pixels, not counted above."
            )
    missing = dict.fromkeys(name for cost in costs.values() for name in cost.missing)
    if missing:
        OUT.print(
            f"Not timed, because the models are missing: {', '.join(missing)}.",
            markup=False,
            soft_wrap=True,
        )
    OUT.print(
        "A forward is one image through the static model. Tables share runs, so together they "
        "cost less than separately.",
        soft_wrap=True,
    )


def _cost(plans: Sequence[PaperPlan], folder: Path, timed: Timer) -> PlanCost:
    remaining = undone(plans, lambda run: _is_done(folder, run))
    return plan_cost(remaining, timed)


def _time(cost: PlanCost) -> str:
    if cost.seconds is None:
        return "not timed"
    return lasting(cost.seconds)


def announce(plans: Sequence[PaperPlan], folder: Path, timed: Timer) -> None:
    """Print what is left to run, and its cost."""
    cost = _cost(plans, folder, timed)
    if cost.runs:
        ERR.print(
            f"{counted(cost.runs, 'run')}, {cost.forwards / 1e6:.1f} million forwards of an "
            "image, at most "
            f"{_time(cost)}; into {folder}.",
            markup=False,
            soft_wrap=True,
        )


def run(plans: Sequence[PaperPlan], folder: Path, loader: Loader) -> dict[str, str]:
    """Run the missing runs with a progress bar; return those that failed, with the reason."""
    try:
        with running.progress() as bar:

            def watch(done: int, total: int, name: str, state: Progress | None) -> None:
                if state is not None:
                    bar(state, f"[{done + 1} of {total}] {name}")

            return run_plans(plans, folder, loader, watch=watch)
    except KeyboardInterrupt:
        ERR.print(
            f"\nStopped. The records are in {folder}. The same command resumes the runs.",
            markup=False,
            soft_wrap=True,
        )
        raise


def show(plan: PaperPlan, result: TableResult) -> None:
    """Print published and measured figures side by side, then the rulings."""
    cells = {f"{cell.row}/{cell.column}": cell for cell in result.cells}
    rows = []
    for row in plan.table.rows:
        for column in plan.table.columns:
            cell = cells[f"{row.id}/{column.id}"]
            measured: str = cell.state
            if cell.value is not None:
                bounds = interval(cell.interval, cell.unit)
                measured = f"{figure(cell.value, cell.unit)} {bounds}".strip()
            name = f"{row.id}/{column.id}"
            flags = "same run as " + cell.as_in if cell.as_in else ", ".join(cell.flags)
            rows.append((name, cell.published, escape(measured), flags))
    title = f"{result.source}: {result.title}"
    print_table(escape(title), ("cell", "paper", f"measured [{LEVEL_TEXT}]", "flags"), rows)
    judged = [
        (escape(" > ".join(judgement.cells)), judgement.ruling, escape(told(judgement)))
        for judgement in result.judgements
        if judgement.as_in is None
    ]
    if judged:
        print_table("Claims", ("cells", "ruling", "measured"), judged)
    for suite_result in result.suite:
        if suite_result.as_in is None:
            OUT.print(
                f"Dynamic suite, {suite_result.cell}: {suite_result.sentence}",
                markup=False,
                soft_wrap=True,
            )
