"""Rewrite the table of the dynamic suite's results in docs/paper.md from the published runs.

python tools/tabulate_suites.py
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dent.evaluation import EvaluationResult, load_run
from dent.paper import load_scale, load_table, plan_table, table_names
from dent.paper.figures import signed
from dent.paper.planning import RUNS, PlannedRun

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs/paper.md"
PUBLISHED: Final = ROOT / "docs/paper/cpu"
BEGIN: Final = "<!-- suites of the published runs: python tools/tabulate_suites.py -->"
END: Final = "<!-- end of suites -->"


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


def rewrite(page: str, lines: str) -> str:
    """Return a page with a new table between its two markers.

    Raises:
        ValueError: The page lacks a marker.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{lines}\n\n{END}{after}"


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
    PAGE.write_text(rewrite(PAGE.read_text(), table()))
