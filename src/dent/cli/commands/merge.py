"""`dent merge`: merge runs that are parts of one evaluation."""

from contextlib import ExitStack
from typing import Annotated

import typer

from dent.cli import console, options, preflight
from dent.support.plural import agreeing, counted

GAPS = 3
"""Exit status when the merged run is not complete."""


def merge_command(
    runs: Annotated[
        list[str],
        typer.Argument(help="Run folders of one evaluation, or their URLs.", metavar="RUN..."),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="New or empty run folder to write, or its URL.")
    ],
    as_json: Annotated[bool, options.as_json(what="what was done")] = False,
) -> None:
    """Merge runs that are parts of one evaluation: shards, or runs on several machines.

    Exit status 0: the run is complete. 2: refused, and nothing was written; the message says where
    the runs differ. 3: written, but units are missing. 130, 143: interrupted by Ctrl-C or SIGTERM,
    and nothing was written.
    """
    preflight.check_folder(out)
    from dent.distributed import merge
    from dent.evaluation import remote

    with ExitStack() as stack:
        place = stack.enter_context(remote.written(out, new=True))
        folders = [stack.enter_context(remote.fetched(run)) for run in runs]
        summary = merge(folders, place.folder)
    summary = summary.model_copy(update={"path": out, "runs": tuple(runs)})
    if as_json:
        console.print_json(summary.model_dump(mode="json"))
    else:
        console.say(
            f"{out}: {summary.units_done} of {counted(summary.units_planned, 'unit')} from "
            f"{counted(len(runs), 'run')}, {summary.duplicates} of them recorded more than "
            "once, with equal content"
            + (f" ({counted(summary.rounded, 'probe')} up to rounding)" if summary.rounded else "")
        )
    if summary.missing:
        batches = ", ".join(map(str, summary.missing_batches))
        console.note(
            f"{counted(len(summary.missing), 'unit')} {agreeing(len(summary.missing), 'are')} in "
            "none of the runs"
            + (f", in batches {batches}" if batches else "")
            + f". The first is {summary.missing[0]}. To run them, use the same `dent evaluate` "
            f"with --out {out}."
        )
        raise typer.Exit(GAPS)
