"""Verify a run in a terminal: restore what it evaluated, and submit its batches again."""

from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from dent import evaluation, report
from dent.cli import restore
from dent.cli.console import ERR
from dent.errors import ConfigError
from dent.evaluation import RecordedRun, RecordError, SchemaVersionError, Verification
from dent.report.loading import is_run


def verify(
    folder: Path,
    weights: Path | None,
    root: Path | None,
    device: str | None,
    records_only: bool,
    allow_code: bool,
) -> Verification:
    """Check a run, with a progress bar.

    Args:
        folder: The run.
        weights: The model's weights file, where the record's model needs one.
        root: Folder of datasets.
        device: Where to compute.
        records_only: Check records and digests alone.
        allow_code: Import and call the `module:factory` names that the run records.

    Raises:
        ConfigError: It names code, which was not allowed.
        RecordError: There is no run.
    """
    loaded = _readable(folder)
    subject = None
    if loaded is not None and not records_only:
        named = restore.named_code(loaded.run.spec)
        if named and not allow_code:
            raise ConfigError(
                f"{folder} names code of its own, which to submit its batches again is to run: "
                f"{', '.join(named)}. If you trust it: --allow-code. Without it: --records-only."
            )
        subject = restore.subject(loaded, weights, root, device)
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=ERR, disable=not ERR.is_terminal) as bar:
        task = bar.add_task("submitting again", total=None)
        return evaluation.verify(
            folder, subject, progress=lambda done, of: bar.update(task, completed=done, total=of)
        )


def _readable(run: Path) -> RecordedRun | None:
    """The run; None where its records are damaged, which is a finding and no refusal.

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
