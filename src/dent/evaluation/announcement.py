"""Sentences about a run: its largest cost before it starts, and a line for each unit."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dent.evaluation.engine.cost import CostEstimate, estimate
from dent.evaluation.engine.progress import Progress
from dent.evaluation.records.shard import Shard
from dent.evaluation.records.spec import STATIC, Settings
from dent.evaluation.results.decision import units_left
from dent.evaluation.results.power import POWER, detectable_gain
from dent.evaluation.results.recorded_run import load_run
from dent.evaluation.run import rounds_of
from dent.evaluation.subject import Subject, describe, prepare
from dent.storage.errors import RecordError
from dent.support.durations import between, duration
from dent.support.plural import counted
from dent.support.rounding import points


class AnnouncedRun(NamedTuple):
    """A run before it starts.

    Attributes:
        subject: What it evaluates.
        settings: Its settings.
        out: Its folder; None records nothing.
        shard: The part of it that will run; None for all.
        static_from: The run whose records of the static model it will copy.
        workers: Processes that work at once.
    """

    subject: Subject
    settings: Settings
    out: Path | None
    shard: Shard | None = None
    static_from: Path | None = None
    workers: int = 1


class _Remaining(NamedTuple):
    """The keys of the units that are left to run, and the number of all units of the run."""

    keys: frozenset[str]
    of: int


def announcement(planned: AnnouncedRun) -> Iterator[str]:
    """Yield sentences about the largest cost of a run, and about the gain that it can show.

    The cost is of the units that are left: those of its shard that are neither recorded nor copied.
    Yields nothing if the run will not start, because it is complete or will be refused.
    """
    remaining = _remaining(planned)
    if remaining is not None:
        cost = estimate(planned.subject, planned.settings, only=remaining.keys)
        yield _cost_text([cost], remaining.of, "This run takes", planned.workers)
        yield from _power_text(planned, cost)


def announcement_of_runs(runs: Sequence[AnnouncedRun]) -> Iterator[str]:
    """Yield sentences about the largest cost of several runs together."""
    costs, units, workers = [], 0, 1
    for planned in runs:
        remaining = _remaining(planned)
        if remaining is not None:
            costs.append(estimate(planned.subject, planned.settings, only=remaining.keys))
            units += remaining.of
            workers = planned.workers
    if costs:
        these = "This run takes" if len(costs) == 1 else f"These {len(costs)} runs take"
        yield _cost_text(costs, units, these, workers)


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
    time = f"{between(state.least, state.remaining)} left {left_in}".rstrip()
    if state.decision is None:
        return f"about {time}"
    if state.decision == 0:
        return f"at most {time}"
    return f"at most {time}, a decision in {duration(state.decision)} at the soonest"


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


def _remaining(planned: AnnouncedRun) -> _Remaining | None:
    """Return the units that are left to run; None if there are none, or the run will be refused."""
    prepared = prepare(planned.subject, planned.settings)
    spec, plan = prepared.spec, prepared.plan
    own = {
        unit.key
        for groups in rounds_of(planned.shard, spec, plan)
        for group in groups
        for unit in group
    }
    done = _copied(planned.static_from)
    out = planned.out
    if out is not None and out.exists():
        try:
            recorded = load_run(out)
        except RecordError:
            if not out.is_dir() or any(out.iterdir()):
                return None
        else:
            is_other_evaluation = recorded.run.spec.newest != spec
            if is_other_evaluation or not units_left(
                recorded.run.spec, recorded.plan, recorded.records
            ):
                return None
            done |= recorded.records.keys()
    keys = frozenset(own - done)
    return _Remaining(keys, len(own)) if keys else None


def _copied(folder: Path | None) -> set[str]:
    """Return the keys of the records of the static model that will be copied from another run."""
    if folder is None:
        return set()
    try:
        records = load_run(folder).records
    except RecordError:  # the run says so when it starts
        return set()
    return {key for key, record in records.items() if record.defense == STATIC}


def _cost_text(costs: Sequence[CostEstimate], units: int, these: str, workers: int) -> str:
    least, most = sum(cost.least for cost in costs), sum(cost.seconds for cost in costs)
    megabytes = round(sum(cost.tensor_bytes for cost in costs) / 1e6)
    space = f"{megabytes} MB" if megabytes else "less than 1 MB"
    remaining = sum(cost.units for cost in costs)
    these_units = counted(units, "unit")
    if remaining < units:
        these_units = f"the {remaining} of {these_units} that are left"
    by = f" by {counted(workers, 'worker')}" if workers > 1 else ""
    largest = max(costs, key=lambda cost: cost.seconds)
    time = between(least / workers, most / workers)
    condition = f"if no attack stops early (timed on {counted(largest.measured_on, 'image')})"
    sentences = [
        f"{these} about {time} for {these_units}{by}, {condition}.",
        f"The images need {space}.",
    ]
    for name, defense in largest.defenses.items():
        if name != STATIC:
            times = f"{max(1, round(defense.relative))} of the static model"
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
