"""Verify a run in a terminal: restore what it evaluated, and submit its batches again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from dent import evaluation, report
from dent.cli.console import ERR, OUT, print_table
from dent.errors import ConfigError
from dent.evaluation import Reattack, RecordedRun, RecordError, SchemaVersionError, Verification
from dent.evaluation.verification.verify import Check, OnUnit
from dent.report.loading import is_run
from dent.support.printable import one_line


def reattack(count: str | None, nonce: str | None, *, records_only: bool) -> Reattack | None:
    """Return which attacks to run again; None without `--reattack`.

    Args:
        count: How many, or `all`.
        nonce: The nonce that draws them.
        records_only: Whether the check loads no model.

    Raises:
        ConfigError: The options contradict each other, or `count` is neither a number nor `all`.
    """
    if count is None:
        if nonce is not None:
            raise ConfigError("--nonce draws attacks to run again: add --reattack K.")
        return None
    if records_only:
        raise ConfigError("--reattack needs the model: leave out --records-only.")
    if count == "all":
        if nonce is not None:
            raise ConfigError("--reattack all draws nothing: leave out --nonce.")
        return Reattack()
    if not count.isdecimal():
        raise ConfigError(f"--reattack expected a number or all, got {count!r}.")
    if not nonce:
        raise ConfigError(
            f"--reattack {count} needs --nonce TEXT, a random text that selects the attacks. "
            "Choose it "
            "after the run is finished, so that its author cannot know which attacks you will "
            "check. Or use --reattack all."
        )
    return Reattack(int(count), nonce)


def verify(
    folder: Path,
    weights: Path | None,
    root: Path | None,
    device: str | None,
    records_only: bool,
    allow_code: bool,
    reattack: Reattack | None,
) -> Verification:
    """Check a run, with a progress bar.

    Args:
        folder: The run.
        weights: The model's weights file, if the recorded model needs one.
        root: Folder of datasets.
        device: The device to compute on.
        records_only: Check only records and digests.
        allow_code: Import and call the `module:factory` names that the run records.
        reattack: The attacks to run again; none if None.

    Raises:
        ConfigError: The run names code that is not allowed.
        RecordError: There is no run.
    """
    loaded = _readable(folder)
    subject = None
    if loaded is not None and not records_only:
        subject = evaluation.restore(
            loaded, weights=weights, data_root=root, device=device, allow_code=allow_code
        )
    with progress() as on_unit:
        return evaluation.verify(folder, subject, progress=on_unit, reattack=reattack)


@contextmanager
def progress() -> Iterator[OnUnit]:
    """Show a bar, and yield what is called after every unit that was submitted again."""
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=ERR, disable=not ERR.is_terminal) as bar:
        task = bar.add_task("submitting again", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def show(name: str, says: str, checks: Sequence[Check]) -> None:
    """Print what was checked, and every problem."""
    rows = [(check.name, check.state, str(check.looked_at)) for check in checks]
    OUT.print(f"[bold]{escape(one_line(name))}: {says}[/]", soft_wrap=True)
    print_table("What was checked", ("check", "state", "looked at"), rows)
    for check in checks:
        for problem in check.problems:
            OUT.print(f"{check.name}: {one_line(problem)}", markup=False, soft_wrap=True)


def _readable(run: Path) -> RecordedRun | None:
    """Read the run; None if its records are damaged, which `verify` reports as a failed check.

    Raises:
        RecordError: There is no run there at all.
    """
    try:
        return report.load_run(run)
    except SchemaVersionError:
        raise
    except RecordError:
        if not is_run(run):
            raise
        return None
