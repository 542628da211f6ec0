"""Print the cost of tables of the paper."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dent.cli.console import ERR, OUT, print_json, print_table
from dent.cli.durations import lasting
from dent.evaluation.records.folder import RESULT
from dent.paper import PaperPlan, PlannedRun
from dent.paper.estimate import PlanCost, plan_cost, profile_forwards, undone
from dent.paper.planning import RUNS
from dent.paper.scales import Chosen
from dent.support.plural import counted

Timer = Callable[[Chosen], float | None]
"""Returns the seconds of a model's forward of one image, or None if they cannot be measured."""

AT_MOST = (
    "At most: if every attack runs to its end. An attack stops early on a batch whose members are "
    "all wrong, and a suite stops once a gain can no longer be shown."
)


def estimated(plans: Sequence[PaperPlan], folder: Path, timed: Timer, *, as_json: bool) -> None:
    """Print the cost of each table, and of all of them together."""
    costs: dict[str, PlanCost] = {}
    for plan in plans:
        cost = _cost([plan], folder, timed)
        # A profile times its own model, so a time estimated from forwards does not apply.
        costs[plan.table.id] = cost if plan.profile is None else replace(cost, seconds=None)
    costs["together"] = _cost(plans, folder, timed)
    if as_json:
        print_json(
            [
                {
                    "id": name,
                    "runs": cost.runs,
                    "forwards": cost.forwards,
                    "seconds": cost.seconds,
                    "missing": list(dict.fromkeys(chosen.name for chosen in cost.missing)),
                }
                for name, cost in costs.items()
            ]
        )
        return
    rows = [
        (name, str(cost.runs), forwards_in_words(cost.forwards), _time(cost))
        for name, cost in costs.items()
    ]
    print_table("Cost", ("table", "runs to do", "forwards", "at most"), rows)
    for plan in plans:
        if plan.profile is not None:
            _say(
                f"{plan.table.id} is a profile, not an evaluation: "
                f"{profile_forwards(plan):.0f} forwards of {plan.profile.model} at "
                f"{plan.profile.size} pixels, not counted above."
            )
    missing = dict.fromkeys(chosen for cost in costs.values() for chosen in cost.missing)
    if missing:
        _say("Not timed, because models are missing:")
    for chosen in missing:
        how = f"make it by: {chosen.made_by}" if chosen.made_by else "its first run downloads it"
        _say(f"  {chosen.name} on {chosen.dataset}: {how}")
    _say(
        "A forward is one image through the static model. Tables share runs, so together they "
        "cost less than separately."
    )
    if any(cost.seconds is not None for cost in costs.values()):
        _say(AT_MOST)


def announce(plans: Sequence[PaperPlan], folder: Path, timed: Timer) -> None:
    """Print what is left to run, and its cost."""
    cost = _cost(plans, folder, timed)
    if not cost.runs:
        return
    time = "for a time that is not known, because models are missing"
    if cost.seconds is not None:
        time = f"at most {lasting(cost.seconds)}"
    ERR.print(
        f"{counted(cost.runs, 'run')}, {forwards_in_words(cost.forwards)} forwards of an image, "
        f"{time}; into {folder}." + (f" {AT_MOST}" if cost.seconds is not None else ""),
        markup=False,
        soft_wrap=True,
    )


def forwards_in_words(count: float) -> str:
    """Return a count in words, such as `13.0 billion`, `5.2 million` or `3,184`."""
    for size, name in ((1e9, "billion"), (1e5, "million")):
        if count >= size:
            return f"{count / max(size, 1e6):.1f} {name}"
    return f"{count:,.0f}"


def seconds_left(plans: Sequence[PaperPlan], folder: Path, timed: Timer) -> dict[str, float | None]:
    """Return, by folder, the largest duration of each run to do, in seconds; None if not timed."""
    runs = undone(plans, lambda run: _is_done(folder, run))
    return {run.folder: plan_cost([run], timed).seconds for run in runs}


def _cost(plans: Sequence[PaperPlan], folder: Path, timed: Timer) -> PlanCost:
    return plan_cost(undone(plans, lambda run: _is_done(folder, run)), timed)


def _is_done(folder: Path, run: PlannedRun) -> bool:
    return (folder / RUNS / run.folder / RESULT).is_file()


def _time(cost: PlanCost) -> str:
    if cost.seconds is None:
        return "not timed"
    return lasting(cost.seconds) if cost.runs else "nothing to run"


def _say(text: str) -> None:
    OUT.print(text, markup=False, soft_wrap=True)
