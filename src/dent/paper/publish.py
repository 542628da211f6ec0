"""Keep what was measured where it can be committed: records without their images, and the page."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from dent.evaluation.records.folder import PLAN, RUN
from dent.evaluation.records.journal import JOURNAL
from dent.paper.page import write_page
from dent.paper.planning import RUNS, PaperPlan
from dent.paper.profile import PROFILE
from dent.paper.summary import summarize
from dent.storage.disk import writing

_RECORDS = (RUN, PLAN, JOURNAL, PROFILE)
"""What results are derived from; images and what is derived stay where they are."""


def publish(plans: Sequence[PaperPlan], out: Path, folder: Path) -> Path:
    """Copy the records of tables, some tens of kilobytes a run, and write their page beside them.

    What lies there of an earlier time is replaced. The page can be made again from the copies
    alone, and names the commands that would fill `out`.

    Args:
        plans: The tables, all at one scale.
        out: The folder that `run_plans` was given.
        folder: The page becomes `folder/SCALE.html`, the records `folder/SCALE/runs`.

    Returns:
        The page.

    Raises:
        RecordError: Something cannot be written, or records are damaged.
    """
    scale = plans[0].scale.id
    kept = folder / scale
    wanted = {run.folder for plan in plans for run in plan.runs()}
    wanted |= {plan.profile_folder for plan in plans if plan.profile is not None}
    if kept.resolve() != out.resolve():
        with writing(kept):
            shutil.rmtree(kept / RUNS, ignore_errors=True)
            for name in sorted(wanted):
                _copy(out / RUNS / name, kept / RUNS / name)
    results = [summarize(plan, kept, said=out) for plan in plans]
    return write_page(plans, results, kept, folder / f"{scale}.html")


def _copy(run: Path, to: Path) -> None:
    there = [name for name in _RECORDS if (run / name).is_file()]
    if there:
        to.mkdir(parents=True)
    for name in there:
        shutil.copyfile(run / name, to / name)
