"""Write the table of the dynamic suite's results in docs/paper.md from the published runs.

python benchmarks/suites.py page
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pages import write_between

from dent.evaluation import EvaluationResult, load_run
from dent.paper import load_scale, load_table, plan_table, table_names
from dent.paper.figures import signed
from dent.paper.planning import RUNS, PlannedRun

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs/paper.md"
PUBLISHED: Final = ROOT / "docs/paper/cpu"


def page() -> None:
    """Write the table into the page."""
    write_between(PAGE, "suites", [table()])


def table(scale: str = "cpu", published: Path = PUBLISHED) -> str:
    """Return the table in Markdown, without a final line break."""
    tables: dict[PlannedRun, list[str]] = {}
    for name in table_names():
        for run in plan_table(load_table(name), load_scale(scale)).suites.values():
            tables.setdefault(run, [])
            if name not in tables[run]:
                tables[run].append(name)
    rows = [
        "| model, attack | defense | tables | clean | at most, attacked | gain at most | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run, names in tables.items():
        result = load_run(published / RUNS / run.folder).result
        rows.append(_row(run, names, result))
    return "\n".join(rows)


def _row(run: PlannedRun, names: Iterable[str], result: EvaluationResult) -> str:
    static, defended = (result.defenses[each] for each in ("static", run.defense_name))
    found, verdict = defended.difference, defended.verdict
    if found is None or found.value is None or found.interval is None or verdict is None:
        raise ValueError(f"{run.folder} has no result")
    gain, low, high = (signed(100 * end, "%") for end in (found.value, *found.interval))
    clean, worst = (
        " → ".join(f"{100 * (each.share or 0.0):.1f}%" for each in pair)
        for pair in (
            (static.natural, defended.natural),
            (static.worst.served, defended.worst.served),
        )
    )
    cells = (
        f"`{run.model.name}`, {run.norm} {run.eps}",
        f"`{run.defense_name}`",
        ", ".join(name.removeprefix("table") for name in names),
        clean,
        worst,
        f"{gain} [{low}, {high}]",
        verdict.ruling,
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["page"])
    parser.parse_args()
    page()
