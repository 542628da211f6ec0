"""`dent paper`: the paper's tables, beside the published figures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer

from dent import names
from dent.cli import completion, console, options, preflight
from dent.errors import ConfigError

MISSING: Final = 3
"""Exit status when some runs were skipped because a model or dataset is missing."""

_FIRST: Final = (
    "Timing one prediction of each model",
    "Estimating what is left to run",
    "Reading the records",
)
"""Messages about the first, slow step: with --estimate, with runs to do, and without runs."""


def paper_command(
    tables: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"{', '.join(names.TABLES)}.",
            autocompletion=completion.tables,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All tables.")] = False,
    scale: Annotated[
        str,
        typer.Option(
            help="full: the paper's setting. gpu, cpu-wide, cpu: the same tables in miniature.",
            autocompletion=completion.scales,
        ),
    ] = "cpu",
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print the cost of the tables, and run nothing.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Page to write. Default: paper.html in the output folder."),
    ] = None,
    weights_folder: Annotated[
        Path, typer.Option(help="Folder of weights from `dent train`.")
    ] = Path("runs/train"),
    root: Annotated[Path | None, options.data()] = None,
    device: Annotated[str | None, options.device()] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Output folder; the same command resumes it. Default: runs/paper/SCALE.",
        ),
    ] = None,
    run: Annotated[
        bool, typer.Option(help="Run what is missing, or make the page from existing runs.")
    ] = True,
    no_suite: Annotated[
        bool,
        typer.Option("--no-suite", help="Leave out the dynamic suite, which takes longest."),
    ] = False,
    publish_to: Annotated[
        Path | None,
        typer.Option(
            "--publish",
            help="Folder for a copy of the records, without images, and their page, SCALE.html.",
        ),
    ] = None,
    as_json: Annotated[bool, options.as_json(what="the results")] = False,
) -> None:
    """Run tables of the paper, and check its claims. Without a table, list the tables.

    Each figure comes from a run of `dent evaluate`, which several tables may share. If the command
    is interrupted, the same command resumes it.

    Exit status 0: done. 2: refused, or failed with one message. 3: some runs were skipped because
    weights or data are missing. 130: interrupted by Ctrl-C. 143: interrupted by SIGTERM.
    """
    _check_tables(tables or (), every=every, estimate=estimate)
    if publish_to is not None and no_suite:
        raise ConfigError("--publish needs the results of the dynamic suite: leave out --no-suite")
    names.check_tables(tables or (), scale)
    preflight.check_writable(out, publish_to, files=(report,))
    if (tables or every) and not as_json:
        # Printed before anything slow is imported.
        console.note(f"{_FIRST[0 if estimate else 1 if run else 2]} ...")
    from dent import paper
    from dent.cli.output import paper_costs, paper_tables
    from dent.paper.estimate import timer
    from dent.paper.runner import Loader
    from dent.support.devices import usable_device

    if not (tables or every):
        paper_tables.show_list(as_json=as_json)
        return
    chosen = paper.load_scale(scale)
    folder = out or Path("runs/paper") / scale
    chosen_tables = names.TABLES if every else dict.fromkeys(tables or ())
    plans = [
        paper.plan_table(paper.load_table(name), chosen, weights_folder) for name in chosen_tables
    ]
    if no_suite:
        plans = [replace(plan, suites={}) for plan in plans]
    compute_device = usable_device(device)
    timed = timer(compute_device)
    if estimate:
        paper_costs.show_estimate(plans, folder, timed, as_json=as_json)
        return
    loader = Loader(compute_device, root, fetched=True)
    missing = paper_tables.run(plans, folder, loader, None if as_json else timed) if run else {}
    results = [paper.summarize(plan, folder) for plan in plans]
    page = paper.write_page(plans, results, folder, report or folder / "paper.html")
    if publish_to is not None:
        page = paper.publish(plans, folder, publish_to)
    paper_tables.show_skipped(missing)
    if as_json:
        console.print_json([result.model_dump(mode="json") for result in results])
    else:
        for plan, result in zip(plans, results, strict=True):
            paper_tables.show_table(plan, result)
        console.say(f"Page: {page}")
    if missing:
        raise typer.Exit(MISSING)


def _check_tables(tables: Sequence[str], *, every: bool, estimate: bool) -> None:
    """Check that tables are given by name or by --all, and some for --estimate."""
    if every and tables:
        raise ConfigError(f"--all includes every table: leave out {', '.join(tables)}, or --all")
    if estimate and not (every or tables):
        raise ConfigError("--estimate needs tables: name some, or add --all")
