"""`dent paper`: the paper's tables again, beside the published figures."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.markup import escape

from dent.cli import resolve, running
from dent.cli.console import ERR, OUT, print_json, print_table
from dent.errors import ConfigError
from dent.evaluation import Progress
from dent.evaluation.folder import RESULT
from dent.paper import (
    Plan,
    PlannedRun,
    TableResult,
    load_scale,
    load_table,
    plan_table,
    publish,
    run_plans,
    scale_names,
    summarize,
    table_names,
    write_page,
)
from dent.paper.estimate import PlanCost, plan_cost, profile_forwards, timer, undone
from dent.paper.page import figure, interval, told
from dent.paper.planning import RUNS, WEIGHTS
from dent.paper.runner import Loader
from dent.paper.scales import Chosen

Timer = Callable[[Chosen], float | None]
MISSING: Final = 3
"""Exit status when what could be run was, and something could not: a model, a dataset."""


def paper_command(
    tables: Annotated[
        list[str] | None,
        typer.Argument(help="table1 to table14, figure4, section43, section44, readme."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    scale: Annotated[
        str, typer.Option(help="full: the paper's setting. gpu, cpu: the same in shape.")
    ] = "cpu",
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say what it takes, and run nothing.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="The page to write; by default paper.html in the output folder."),
    ] = None,
    weights: Annotated[
        Path, typer.Option(help="Folder of the weights that `dent train` made.")
    ] = WEIGHTS,
    root: Annotated[Path | None, typer.Option("--data", help="Folder of datasets.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1. By default the GPU if any.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder; the same command resumes it. Default: runs/paper/SCALE."),
    ] = None,
    run: Annotated[
        bool, typer.Option(help="Run what is missing, or make the page of what is there.")
    ] = True,
    publish_to: Annotated[
        Path | None,
        typer.Option(
            "--publish",
            help="Folder for a copy of the records, without images, and their page: SCALE.html.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Run tables of the paper, and judge its claims by what comes out; without a table, list them.

    Each figure is read off a run of `dent evaluate` that several tables may share. Interrupt it,
    and the same command goes on.

    Exit status 0: done. 2: refused, or failed with one message. 3: something could not be run for
    want of weights or data; the rest was. 130: interrupted.
    """
    if every and tables:
        raise ConfigError(f"--all is every table: leave out {', '.join(tables)}, or --all")
    if not (tables or every):
        _list(as_json=as_json)
        return
    chosen = load_scale(scale)
    folder = out or Path("runs/paper") / scale
    names = table_names() if every else dict.fromkeys(tables or ())
    plans = [plan_table(load_table(name), chosen, weights) for name in names]
    where = resolve.device(device)
    if estimate:
        _estimate(plans, folder, timer(where), as_json=as_json)
        return
    if run and not as_json:
        _announce(plans, folder, timer(where))
    missing = _run(plans, folder, Loader(where, root, fetched=True)) if run else {}
    results = [summarize(plan, folder) for plan in plans]
    page = write_page(plans, results, folder, report or folder / "paper.html")
    if publish_to is not None:
        page = publish(plans, folder, publish_to)
    if as_json:
        print_json([result.model_dump(mode="json") for result in results])
    else:
        for plan, result in zip(plans, results, strict=True):
            _show(plan, result)
        OUT.print(f"Page: {page}", markup=False, soft_wrap=True)
    for name, why in missing.items():
        ERR.print(f"left out: {name}: {why}", style="red", markup=False, soft_wrap=True)
    if missing:
        raise typer.Exit(MISSING)


def _list(*, as_json: bool) -> None:
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


def _estimate(plans: Sequence[Plan], folder: Path, timed: Timer, *, as_json: bool) -> None:
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
    print_table("What it takes", columns, rows)
    for plan in plans:
        if plan.profile is not None:
            OUT.print(
                f"{plan.table.id} is no evaluation: {profile_forwards(plan):.0f} forwards of "
                f"{plan.profile.model} at {plan.profile.size} pixels, not counted above."
            )
    missing = dict.fromkeys(name for cost in costs.values() for name in cost.missing)
    if missing:
        OUT.print(f"Not here, so not timed: {', '.join(missing)}.", markup=False, soft_wrap=True)
    OUT.print(
        "A forward is one image through the static model. Tables share runs: together they take "
        "less than one by one.",
        soft_wrap=True,
    )


def _cost(plans: Sequence[Plan], folder: Path, timed: Timer) -> PlanCost:
    left = undone(plans, lambda run: _is_done(folder, run))
    return plan_cost(left, timed)


def _time(cost: PlanCost) -> str:
    if cost.seconds is None:
        return "not timed"
    return str(timedelta(seconds=round(cost.seconds)))


def _announce(plans: Sequence[Plan], folder: Path, timed: Timer) -> None:
    cost = _cost(plans, folder, timed)
    if cost.runs:
        ERR.print(
            f"{cost.runs} runs, {cost.forwards / 1e6:.1f} million forwards of an image, at most "
            f"{_time(cost)}; into {folder}.",
            markup=False,
            soft_wrap=True,
        )


def _run(plans: Sequence[Plan], folder: Path, loader: Loader) -> dict[str, str]:
    try:
        with running.progress() as bar:

            def watch(done: int, total: int, name: str, state: Progress | None) -> None:
                if state is not None:
                    bar(state, f"[{done + 1} of {total}] {name}")

            return run_plans(plans, folder, loader, watch=watch)
    except KeyboardInterrupt:
        ERR.print(
            f"\nStopped. What is done lies in {folder}; the same command goes on from there.",
            markup=False,
            soft_wrap=True,
        )
        raise


def _show(plan: Plan, result: TableResult) -> None:
    """Published and measured side by side, then the rulings."""
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
    print_table(escape(title), ("cell", "paper", "measured [95%]", "flags"), rows)
    judged = [
        (escape(" > ".join(each.cells)), each.ruling, escape(told(each)))
        for each in result.judgements
        if each.as_in is None
    ]
    if judged:
        print_table("Claims", ("cells", "ruling", "measured"), judged)
    for each in result.suite:
        if each.as_in is None:
            OUT.print(f"Dynamic suite, {each.cell}: {each.sentence}", markup=False, soft_wrap=True)
