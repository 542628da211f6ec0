"""`dent list | show | report | verify | pack`: the commands that read records."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from dent.cli import console, options, preflight
from dent.support.printable import one_line

_Run = Annotated[str, typer.Argument(help="Run folder, or its URL.", metavar="RUN")]
_Json = Annotated[bool, options.as_json()]
_Data = Annotated[Path | None, options.data()]


def list_command(
    root: Annotated[str, typer.Argument(help="Folder with runs, or its URL.")] = "runs",
    as_json: _Json = False,
) -> None:
    """List the runs in a folder and its subfolders, one line per defense."""
    from dent import report
    from dent.cli.output.runs import show_run
    from dent.evaluation import remote

    with remote.fetched(root, tensors=False) as folder:
        runs = report.list_runs(folder)
        if remote.is_url(root):
            paths = (f"{root.rstrip('/')}/{Path(run.path).relative_to(folder)}" for run in runs)
            runs = [
                run.model_copy(update={"path": path.removesuffix("/.")})
                for run, path in zip(runs, paths, strict=True)
            ]
    if as_json:
        console.print_json([run.model_dump(mode="json") for run in runs])
        return
    if not runs:
        console.note(f"No runs in {root} or below.")
    for run in runs:
        show_run(run)
        if run.error:
            console.note(f"{one_line(run.path)}: {one_line(run.error)}")


def show_command(
    run: _Run,
    sample: Annotated[
        int | None, typer.Option(help="Id of one sample: show what every attack did to it.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Show a run's result, or every prediction of one sample."""
    from dent import report
    from dent.cli.output.result import show_result
    from dent.cli.output.runs import show_sample
    from dent.evaluation import remote

    with remote.fetched(run, tensors=False) as folder:
        loaded = report.load_run(folder)
    if sample is None:
        if as_json:
            console.print_json(loaded.result.to_json())
        else:
            show_result(loaded.result, run)
        return
    story = report.sample_story(loaded, sample)
    if as_json:
        console.print_json(story.model_dump(mode="json"))
        return
    show_sample(story)


def report_command(
    runs: Annotated[
        list[str], typer.Argument(help="Run folders or sweeps, or their URLs.", metavar="RUN...")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write: .html, .md, .csv or .json.")
    ] = Path("report.html"),
    root: _Data = None,
    as_json: Annotated[bool, options.as_json(what="the path of the file")] = False,
) -> None:
    """Write a page, table or file about one run, or several side by side."""
    preflight.check_file(out)
    from dent import report
    from dent.evaluation import remote

    with ExitStack() as stack:
        folders = [stack.enter_context(remote.fetched(run)) for run in runs]
        path = report.write_report(folders, out, data_root=root)
    if as_json:
        console.print_json({"written": str(path), "runs": runs})
        return
    console.say(f"Written to {path}")


def verify_command(
    run: _Run,
    weights: Annotated[
        Path | None, typer.Option(help="The model's weights file, if it needs one.")
    ] = None,
    root: _Data = None,
    device: Annotated[str | None, options.device()] = None,
    records_only: Annotated[bool, options.records_only()] = False,
    allow_code: Annotated[bool, options.allow_code()] = False,
    reattack: Annotated[str | None, options.reattack()] = None,
    reattack_nonce: Annotated[str | None, options.reattack_nonce()] = None,
    as_json: _Json = False,
) -> None:
    """Check a run independently: digests, bounds, and every batch submitted again.

    Exit status 0: verified. 1: something is wrong. 3: nothing is wrong, but not everything was
    checked. Without --reattack, only the records are verified, not the attacks.
    """
    from dent.cli import resolve, runner
    from dent.cli.output.verification import exit_unless_verified, show_checks
    from dent.evaluation import remote

    attacks_again = resolve.reattack(reattack, reattack_nonce, records_only=records_only)
    with remote.fetched(run) as folder:
        verification = runner.verify(
            folder,
            runner.Restoration(weights, root, device, allow_code),
            records_only=records_only,
            reattack=attacks_again,
        )
    if as_json:
        console.print_json(verification.model_dump(mode="json"))
    else:
        show_checks(run, verification.says, verification.checks)
    exit_unless_verified(verification.status)


def pack_command(
    run: Annotated[Path, typer.Argument(help="Run folder, or folder of a row.", metavar="RUN")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Archive of the records, which ends in .tar.gz.")
    ] = Path("run.tar.gz"),
    as_json: Annotated[bool, options.as_json(what="what was written")] = False,
) -> None:
    """Pack the records of a run into one archive, and its adversarial images into another."""
    preflight.check_file(out)
    from dent.board import pack

    packed = pack.pack(run, out)
    for note in packed.notes:
        console.note(note)
    if as_json:
        images = None if packed.images is None else str(packed.images)
        console.print_json({"records": str(out), "images": images, **packed.manifest.to_json()})
        return
    for path in filter(None, (packed.records, packed.images)):
        console.say(f"Written to {path}")
    console.say(f"Manifest {packed.manifest.digest}")
