"""Show an evaluation from its records, as pages, tables and figures.

    from dent.report import write_report

    write_report([Path("runs/first")], Path("report.html"))

Nothing here uses a model. Flags stand beside every number that may be wrong.
See docs/evaluation/reading-a-report.md.
"""

from dent.evaluation.results.recorded_run import RecordedRun as LoadedRun
from dent.evaluation.results.recorded_run import load_run
from dent.report.figures import figure, stream_figure
from dent.report.listing import RunSummary, list_runs
from dent.report.story import DefenseStory, SampleStory, StoryAnswer, sample_story
from dent.report.write import FORMATS, write_report

__all__ = [
    "FORMATS",
    "DefenseStory",
    "LoadedRun",
    "RunSummary",
    "SampleStory",
    "StoryAnswer",
    "figure",
    "list_runs",
    "load_run",
    "sample_story",
    "stream_figure",
    "write_report",
]
