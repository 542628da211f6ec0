"""Print the cost of tables of the paper."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dent.cli import console
from dent.evaluation.records.folder import RESULT
from dent.paper import PaperPlan, PlannedRun
from dent.paper.estimate import (
    PlanCost,
    UnitCost,
    largest_unit,
    plan_cost,
    profile_forwards,
    undone,
)
from dent.paper.foreseen import SENTENCES, Foreseen, foreseen
from dent.paper.planning import RUNS
from dent.paper.scales import Chosen
from dent.support.durations import duration
from dent.support.plural import counted

Timer = Callable[[Chosen], float | None]
"""Returns the seconds of a model's forward of one image, or None if they cannot be measured."""

AT_MOST = (
    "At most: if every attack runs to its end. An attack stops early on a batch whose members are "
    "all wrong, and a suite stops once a gain can no longer be shown."
)


@dataclass(frozen=True)
class _Estimate:
    """What to know about runs before they start."""

    cost: PlanCost
    largest: UnitCost | None
    limits: Mapping[Foreseen, int]


def show_estimate(plans: Sequence[PaperPlan], folder: Path, timed: Timer, *, as_json: bool) -> None:
    """Print the cost of each table, and of all of them together."""
    estimates: dict[str, _Estimate] = {}
    for plan in plans:
        estimate = _estimate([plan], folder, timed)
        if plan.profile is not None:
            # A profile times its own model, so a time estimated from forwards does not apply.
            estimate = replace(estimate, cost=replace(estimate.cost, seconds=None))
        estimates[plan.table.id] = estimate
    estimates["together"] = _estimate(plans, folder, timed)
    if as_json:
        console.print_json([_as_plain(name, estimate) for name, estimate in estimates.items()])
        return
    costs = {name: estimate.cost for name, estimate in estimates.items()}
    rows = [
        (name, str(cost.runs), forwards_in_words(cost.forwards), _time(cost))
        for name, cost in costs.items()
    ]
    console.print_table("Cost", ("table", "runs to do", "forwards", "at most"), rows)
    for plan in plans:
        if plan.profile is not None:
            console.say(
                f"{plan.table.id} is a profile, not an evaluation: "
                f"{profile_forwards(plan):.0f} forwards of {plan.profile.model} at "
                f"{plan.profile.size} pixels, not counted above."
            )
    _say_missing(costs.values())
    console.say(
        "A forward is one image through the static model. Tables share runs, so together they "
        "cost less than separately."
    )
    if any(cost.seconds is not None for cost in costs.values()):
        console.say(AT_MOST)
    _say_largest(estimates["together"].largest)
    _say_limits({name: estimates[name].limits for name in (plan.table.id for plan in plans)})


def _estimate(plans: Sequence[PaperPlan], folder: Path, timed: Timer) -> _Estimate:
    runs = undone(plans, lambda run: _is_done(folder, run))
    limits = Counter(limit for plan in plans for limit in foreseen(plan).values())
    return _Estimate(plan_cost(runs, timed), largest_unit(runs, timed), limits)


def _as_plain(name: str, estimate: _Estimate) -> dict[str, Any]:
    cost, unit = estimate.cost, estimate.largest
    return {
        "id": name,
        "runs": cost.runs,
        "forwards": cost.forwards,
        "seconds": cost.seconds,
        "missing": list(dict.fromkeys(chosen.name for chosen in cost.missing)),
        "largest_unit": unit and {**asdict(unit), "model": unit.model.name},
        "foreseen": dict(estimate.limits),
    }


def _say_missing(costs: Iterable[PlanCost]) -> None:
    missing = dict.fromkeys(chosen for cost in costs for chosen in cost.missing)
    if missing:
        console.say("Not timed, because models are missing:")
    for chosen in missing:
        how = f"make it by: {chosen.made_by}" if chosen.made_by else "its first run downloads it"
        console.say(f"  {chosen.name} on {chosen.dataset}: {how}")


def _say_largest(unit: UnitCost | None) -> None:
    if unit is not None:
        console.say(
            "A run that is killed loses the unit that it is in. The largest unit: "
            f"{unit.attack} on {unit.defense} of {unit.model.name}, at most "
            f"{forwards_in_words(unit.forwards)} forwards, {_duration(unit.seconds)}."
        )


def _say_limits(limits: Mapping[str, Mapping[Foreseen, int]]) -> None:
    """Print which tables have comparisons that the size of their scale leaves open."""
    for limit, sentence in SENTENCES.items():
        where = [
            f"{counted(counts[limit], 'comparison')} of {name}"
            for name, counts in limits.items()
            if counts.get(limit)
        ]
        if where:
            console.say(f"{sentence.removesuffix('.')}: {', '.join(where)}.")


def announce(plans: Sequence[PaperPlan], folder: Path, timed: Timer) -> None:
    """Print what is left to run, and its cost."""
    cost = _cost(plans, folder, timed)
    if not cost.runs:
        return
    time = "for a time that is not known, because models are missing"
    if cost.seconds is not None:
        time = f"at most {duration(cost.seconds)}"
    console.note(
        f"{counted(cost.runs, 'run')}, {forwards_in_words(cost.forwards)} forwards of an image, "
        f"{time}; into {folder}." + (f" {AT_MOST}" if cost.seconds is not None else "")
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
    return _duration(cost.seconds) if cost.runs or cost.seconds is None else "nothing to run"


def _duration(seconds: float | None) -> str:
    return "not timed" if seconds is None else duration(seconds)
