"""Reproduce the paper: every table and figure as data, one runner, a ruling on every claim.

    from dent.paper import load_scale, load_table, plan_table, run_plans, summarize

    plan = plan_table(load_table("table4"), load_scale("cpu"))
    run_plans([plan], Path("runs/paper/cpu"))
    summarize(plan, Path("runs/paper/cpu")).judgements

See docs/paper.md.
"""

from dent.paper.load import load_scale, load_table, scale_names, table_names
from dent.paper.page import write_page
from dent.paper.planning import PaperPlan, PlannedRun, plan_table
from dent.paper.publish import publish
from dent.paper.results import CellResult, Judgement, SuiteResult, TableResult
from dent.paper.runner import run_plans
from dent.paper.scales import Scale
from dent.paper.spec import Table
from dent.paper.summary import summarize

__all__ = [
    "CellResult",
    "Judgement",
    "PaperPlan",
    "PlannedRun",
    "Scale",
    "SuiteResult",
    "Table",
    "TableResult",
    "load_scale",
    "load_table",
    "plan_table",
    "publish",
    "run_plans",
    "scale_names",
    "summarize",
    "table_names",
    "write_page",
]
