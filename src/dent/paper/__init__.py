"""The paper again: every table and figure as data, one runner, and a verdict on every claim.

    from dent.paper import load_table, load_scale, plan_table, run_plans, summarize

    table, scale = load_table("table4"), load_scale("cpu")
    plan = plan_table(table, scale)
    run_plans([plan], Path("runs/paper/cpu"))
    summarize(plan, Path("runs/paper/cpu")).judgements

See docs/paper.md.
"""

from dent.paper.estimate import PlanCost, plan_cost
from dent.paper.load import load_scale, load_table, scale_names, table_names
from dent.paper.planning import Plan, PlannedRun, plan_table
from dent.paper.results import CellResult, Judgement, SuiteResult, TableResult
from dent.paper.scales import Scale
from dent.paper.spec import Table

__all__ = [
    "CellResult",
    "Judgement",
    "Plan",
    "PlanCost",
    "PlannedRun",
    "Scale",
    "SuiteResult",
    "Table",
    "TableResult",
    "load_scale",
    "load_table",
    "plan_cost",
    "plan_table",
    "run_plans",
    "scale_names",
    "summarize",
    "table_names",
    "write_page",
]
