"""Publish runs: copy their records, without images, and their page to a folder to commit."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from dent.evaluation.records.folder import PLAN, RUN
from dent.evaluation.records.journal import JOURNAL
from dent.paper.page import write_page
from dent.paper.planning import RUNS, PaperPlan
from dent.paper.profile import PROFILE
from dent.paper.summary import summarize
from dent.storage.disk import writing
from dent.storage.errors import RecordError
from dent.support.plural import counted

_RECORDS = (RUN, PLAN, JOURNAL, PROFILE)
"""The files that results are derived from. Images and derived files are not copied."""


def publish(plans: Sequence[PaperPlan], out: Path, folder: Path) -> Path:
    """Copy the records of tables, some tens of kilobytes a run, and write their page beside them.

    Earlier copies are replaced. The copies are enough to make the page again. The commands on the
    page write to `out`.

    Args:
        plans: The tables, all at one scale.
        out: The output folder of `run_plans`.
        folder: The folder to publish to. The page becomes `folder/SCALE.html`, and the records go
            to `folder/SCALE/runs`.

    Returns:
        The path of the page.

    Raises:
        RecordError: Something cannot be written, or records are damaged; or `out` has no run of
            these tables, and the published runs would be lost.
    """
    scale = plans[0].scale.id
    copies = folder / scale
    folders = {run.folder for plan in plans for run in plan.runs()}
    folders |= {plan.profile_folder for plan in plans if plan.profile is not None}
    if copies.resolve() != out.resolve():
        _refuse_emptying(copies / RUNS, out / RUNS, folders)
        with writing(copies):
            shutil.rmtree(copies / RUNS, ignore_errors=True)
            for name in sorted(folders):
                _copy(out / RUNS / name, copies / RUNS / name)
    results = [summarize(plan, copies, said=out) for plan in plans]
    return write_page(plans, results, copies, folder / f"{scale}.html")


def _refuse_emptying(copies: Path, runs: Path, names: Iterable[str]) -> None:
    """Raise `RecordError` if published runs would be deleted with no run to replace them."""
    published = len(list(copies.glob("*"))) if copies.is_dir() else 0
    if published and not any((runs / name).is_dir() for name in names):
        raise RecordError(
            f"{runs} has no run of these tables, so that {counted(published, 'published run')} in "
            f"{copies} would be lost: name the folder with the runs (--out), or delete that one"
        )


def _copy(run: Path, to: Path) -> None:
    present = [name for name in _RECORDS if (run / name).is_file()]
    if present:
        to.mkdir(parents=True)
    for name in present:
        shutil.copyfile(run / name, to / name)
