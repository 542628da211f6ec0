"""Sentences about a run: its largest cost before it starts, and a line for each unit."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dent.evaluation.engine.cost import CostEstimate, estimate
from dent.evaluation.engine.progress import Progress
from dent.evaluation.records.spec import STATIC, Settings
from dent.evaluation.results.decision import left
from dent.evaluation.results.power import POWER, detectable_gain
from dent.evaluation.results.recorded_run import load_run
from dent.evaluation.subject import Subject, describe
from dent.storage.errors import RecordError
from dent.support.durations import between, lasting
from dent.support.plural import counted
from dent.support.rounding import points


class AnnouncedRun(NamedTuple):
    """A run before it starts, with its output folder; None records nothing."""

    subject: Subject
    settings: Settings
    out: Path | None


def announcement(planned: AnnouncedRun) -> Iterator[str]:
    """Yield sentences about the largest cost of a run, and about the gain that it can show.

    Yields nothing if the run will not start, because it is complete or will be refused.
    """
    done = _recorded(planned)
    if done is not None:
        cost = estimate(planned.subject, planned.settings)
        yield _cost_text([cost], done, "This run takes")
        yield from _power_text(planned, cost)


def announcement_of_runs(runs: Sequence[AnnouncedRun]) -> Iterator[str]:
    """Yield sentences about the largest cost of several runs together."""
    costs, recorded = [], 0
    for planned in runs:
        done = _recorded(planned)
        if done is not None:
            costs.append(estimate(planned.subject, planned.settings))
            recorded += done
    if costs:
        these = "This run takes" if len(costs) == 1 else f"These {len(costs)} runs take"
        yield _cost_text(costs, recorded, these)


def doing(state: Progress, where: str = "") -> str:
    """Return the unit that is running: `attack pgd · dent+`; `where` names its run."""
    unit = state.unit
    if unit is None:
        return f"{where} done".strip()
    return " ".join(filter(None, (where, unit.kind, unit.attack, "·", unit.defense)))


def time_left(state: Progress, left_in: str = "") -> str:
    """Return the time left, `about 3 to 5 minutes left`; empty if it is unknown or over."""
    if state.unit is None or state.least is None or state.remaining is None:
        return ""
    duration = f"{between(state.least, state.remaining)} left {left_in}".rstrip()
    if state.decision is None:
        return f"about {duration}"
    if state.decision == 0:
        return f"at most {duration}"
    return f"at most {duration}, a decision in {lasting(state.decision)} at the soonest"


class UnitLines:
    """A callback for progress that writes a line when a unit starts.

    Args:
        write: Writes a line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._unit = ""

    def __call__(self, state: Progress, where: str = "", left_in: str = "") -> None:
        """Write a line if the unit is another one than before."""
        unit = doing(state, where)
        if unit == self._unit:
            return
        self._unit = unit
        line = f"[{state.done}/{state.total}] {unit}"
        if where:  # with several runs, the run comes before its unit
            line = f"{unit} [unit {state.done} of {state.total}]"
        self._write(f"{line}  {time_left(state, left_in)}".rstrip())


def _recorded(planned: AnnouncedRun) -> int | None:
    """Return how many units are recorded; None if the run is complete or will be refused."""
    out = planned.out
    if out is None or not out.exists():
        return 0
    try:
        recorded = load_run(out)
    except RecordError:
        return 0 if out.is_dir() and not any(out.iterdir()) else None
    is_other_evaluation = recorded.run.spec.newest != describe(planned.subject, planned.settings)
    if is_other_evaluation or not left(recorded.run.spec, recorded.plan, recorded.records):
        return None
    return len(recorded.records)


def _cost_text(costs: Sequence[CostEstimate], done: int, these: str) -> str:
    least, most = sum(cost.least for cost in costs), sum(cost.seconds for cost in costs)
    megabytes = round(sum(cost.tensor_bytes for cost in costs) / 1e6)
    space = f"{megabytes} MB" if megabytes else "less than 1 MB"
    largest = max(costs, key=lambda cost: cost.seconds)
    timed = counted(largest.measured_on, "image")
    sentences = [
        f"{these} about {between(least, most)} if no attack stops early (timed on {timed}).",
        f"The images need {space}.",
    ]
    if done:
        of_all = counted(sum(cost.units for cost in costs), "unit")
        sentences.append(f"Of {of_all}, {done} are already recorded.")
    for name, defense in largest.defenses.items():
        if name != STATIC:
            times = f"{defense.relative:.0f} of the static model"
            sentences.append(f"One prediction of {name} takes as long as {times}.")
    return " ".join(sentences)


def _power_text(planned: AnnouncedRun, cost: CostEstimate) -> Iterator[str]:
    """Yield, for a whole suite, which gain its samples can show, and when it may stop early."""
    spec = describe(planned.subject, planned.settings)
    if spec.schedule == "by-batch":
        return
    gain = detectable_gain(spec.samples)
    samples = counted(spec.samples, "sample")
    text = f"{samples} cannot show any gain: take more (--n)."
    if gain is not None:
        share = f"{round(5 * POWER)} of 5 runs"
        text = f"With {samples}, {share} would detect a true gain of {points(gain)} points."
    if planned.settings.until == "decided":
        text += " Attacks on a defense stop when a gain can no longer be shown"
        if cost.first_decision is not None:
            soonest = between(cost.first_decision / 2, cost.first_decision)
            text += f", at the earliest after about {soonest}"
        text += "."
    yield text
