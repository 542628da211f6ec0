"""Run an evaluation in a terminal: print its cost first, then show its progress."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dent import distributed
from dent.cli.console import ERR
from dent.cli.durations import between, lasting
from dent.distributed import Cluster
from dent.evaluation import (
    CostEstimate,
    EvaluationResult,
    RecordError,
    Settings,
    Subject,
    describe,
    estimate,
    evaluate,
    load_run,
    sweep,
)
from dent.evaluation import Progress as State
from dent.evaluation.engine.progress import OnProgress
from dent.evaluation.records.shard import Shard
from dent.evaluation.records.spec import STATIC
from dent.evaluation.remote import Place
from dent.evaluation.results.decision import left
from dent.evaluation.results.power import detectable_gain
from dent.evaluation.run import rounds_of
from dent.evaluation.subject import prepare
from dent.evaluation.sweeps import Over, Value, folder_name, variants
from dent.support.plural import agreeing, counted
from dent.support.rounding import points


@dataclass(frozen=True)
class How:
    """The place where a run is computed, and the part to compute. Results do not depend on it.

    Attributes:
        cluster: The Ray cluster; None computes in this process.
        shard: The part of the run; None computes the whole run.
        place: The destination of the records; None for a plain folder.
        static_from: A run folder whose records of the static model are copied.
    """

    cluster: Cluster | None = None
    shard: Shard | None = None
    place: Place | None = None
    static_from: Path | None = None

    def name_of(self, out: Path) -> str:
        """Return the path or URL of a run folder, in the user's terms."""
        return str(out) if self.place is None else self.place.name_of(out)

    def evaluate(
        self, subject: Subject, settings: Settings, *, out: Path | None, progress: OnProgress | None
    ) -> EvaluationResult:
        """Evaluate, as `dent.evaluation.evaluate` does."""
        if self.place is not None:
            progress = self.place.watch(progress)
        if self.cluster is None or out is None:
            return evaluate(
                subject,
                settings,
                out=out,
                progress=progress,
                shard=self.shard,
                static_from=self.static_from,
            )
        return distributed.evaluate(
            subject,
            settings,
            cluster=self.cluster,
            out=out,
            progress=progress,
            shard=self.shard,
            static_from=self.static_from,
            notice=lambda text: ERR.print(text, markup=False, soft_wrap=True),
        )


HERE: Final = How()
"""Compute the whole run in this process."""


def run(subject: Subject, settings: Settings, out: Path, how: How = HERE) -> EvaluationResult:
    """Evaluate with a progress bar. If interrupted, print how to resume."""
    try:
        with progress() as report:
            return how.evaluate(subject, settings, out=out, progress=report)
    except KeyboardInterrupt:
        _stopped(how.name_of(out))
        raise


def run_sweep(
    subject: Subject, settings: Settings, over: Over, values: Sequence[Value], out: Path, how: How
) -> dict[str, EvaluationResult]:
    """Evaluate once for each value, with a progress bar. If interrupted, print how to resume."""
    name = over.replace("_", "-")
    try:
        with progress() as report:
            return sweep(
                subject,
                settings,
                over=over,
                values=values,
                out=out,
                progress=lambda value, state: report(state, f"{name}={value}"),
                evaluate=how.evaluate,
            )
    except KeyboardInterrupt:
        _stopped(how.name_of(out))
        raise


def announce(subject: Subject, settings: Settings, out: Path, how: How = HERE) -> None:
    """Print the largest cost of a run before it starts; nothing if it will not start."""
    waiting = _left(subject, settings, out, how)
    if waiting is not None:
        cost = estimate(subject, settings, only=waiting.keys)
        _say([cost], waiting.of, "", how)
        _say_power(subject, settings, cost)


def announce_sweep(
    subject: Subject,
    settings: Settings,
    over: Over,
    values: Sequence[Value],
    out: Path,
    how: How = HERE,
) -> None:
    """Print the largest cost of all runs of a sweep together."""
    costs, planned = [], 0
    for value, (variant, chosen) in variants(subject, settings, over, values).items():
        waiting = _left(variant, chosen, out / folder_name(over, value), how)
        if waiting is not None:
            costs.append(estimate(variant, chosen, only=waiting.keys))
            planned += waiting.of
    if costs:
        _say(costs, planned, f" of {counted(len(costs), 'run')}", how)


class _Left(NamedTuple):
    """The units of a run, or of its shard, that are not recorded: their keys; and of how many."""

    keys: frozenset[str]
    of: int


def _left(subject: Subject, settings: Settings, out: Path, how: How) -> _Left | None:
    """Return the units that are left to run; None if there are none, or the run will be refused."""
    prepared = prepare(subject, settings)
    spec, plan = prepared.spec, prepared.plan
    mine = {
        unit.key
        for groups in rounds_of(how.shard, spec, plan)
        for group in groups
        for unit in group
    }
    done = _static_keys(how.static_from)
    if out.exists():
        try:
            recorded = load_run(out)
        except RecordError:
            if not out.is_dir() or any(out.iterdir()):
                return None
        else:
            is_other_evaluation = recorded.run.spec.newest != spec
            if is_other_evaluation or not left(recorded.run.spec, recorded.plan, recorded.records):
                return None
            done |= recorded.records.keys()
    keys = frozenset(mine - done)
    return _Left(keys, len(mine)) if keys else None


def _static_keys(folder: Path | None) -> set[str]:
    """Return the keys of the records of the static model that will be copied from another run."""
    if folder is None:
        return set()
    try:
        records = load_run(folder).records
    except RecordError:  # the run says so when it starts
        return set()
    return {key for key, record in records.items() if record.defense == STATIC}


def _say(costs: Sequence[CostEstimate], planned: int, runs: str, how: How) -> None:
    largest = max(costs, key=lambda cost: cost.seconds)
    costs_per_answer = ", ".join(
        f"{name} {defense.relative:.0f}x"
        for name, defense in largest.defenses.items()
        if name != "static"
    )
    workers = (how.cluster and how.cluster.workers) or 1
    least, most = (
        sum(seconds) / workers
        for seconds in ([cost.least for cost in costs], [cost.seconds for cost in costs])
    )
    waiting = sum(cost.units for cost in costs)
    size = sum(cost.tensor_bytes for cost in costs)
    ERR.print(
        f"About {between(least, most)} at this machine's present speed, if no attack stops early, "
        f"and {size / 1e6:.0f} MB, for "
        f"{counted(waiting, 'unit')}{runs}"
        + (f" that {agreeing(waiting, 'are')} left of {planned}" if waiting < planned else "")
        + (f", by {counted(workers, 'worker')}" if workers > 1 else "")
        + (
            f"; one prediction in static forwards: {costs_per_answer}." if costs_per_answer else "."
        ),
        soft_wrap=True,
        markup=False,
    )


def _say_power(subject: Subject, settings: Settings, cost: CostEstimate) -> None:
    """Print, for a whole suite, which gain its samples can show, and when it may stop early."""
    spec = describe(subject, settings)
    if spec.schedule == "by-batch":
        return
    gain = detectable_gain(spec.samples)
    samples = counted(spec.samples, "sample")
    text = f"{samples} cannot show any gain: take more (--n)."
    if gain is not None:
        text = f"A true gain of {points(gain)} points or more shows on {samples} in 4 runs of 5."
    if settings.until == "decided":
        text += " Attacks on a defense stop when a gain can no longer be shown"
        if cost.first_decision is not None:
            soonest = between(cost.first_decision / 2, cost.first_decision)
            text += f", at the earliest after about {soonest}"
        text += "."
    ERR.print(text, soft_wrap=True, markup=False)


@contextmanager
def progress() -> Iterator["_RunReport"]:
    """Show the progress of evaluations: a bar in a terminal, otherwise a line for each unit."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}  {task.fields[robust]}", markup=False),
    )
    with Progress(*columns, console=ERR, disable=not ERR.is_terminal) as bar:
        yield _RunReport(bar)


class _RunReport:
    """A callback for progress: draws a bar in a terminal, otherwise prints a line per unit."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=1.0, left="", robust="")
        self._unit = ""

    def __call__(self, state: State, where: str = "", left_in: str = "") -> None:
        unit = state.unit
        doing = f"{where} done".strip()
        if unit is not None:
            doing = " ".join(filter(None, (where, unit.kind, unit.attack, "·", unit.defense)))
        time_left = ""
        if unit is not None and state.least is not None and state.remaining is not None:
            left = f"{between(state.least, state.remaining)} left {left_in}".rstrip()
            time_left = f"about {left}"
            if state.decision is not None:
                time_left = f"at most {left}"
                if state.decision > 0:
                    time_left += f", a decision in {lasting(state.decision)} at the soonest"
        robust = ", ".join(f"{name} {a}/{b}" for name, (a, b) in state.robust.items())
        self._bar.update(
            self._task,
            description=doing,
            completed=state.share,
            left=time_left,
            robust=f"robust: {robust}" if robust else "",
        )
        if not ERR.is_terminal and doing != self._unit:
            self._unit = doing
            line = f"[{state.done}/{state.total}] {doing}"
            if where:  # with several runs, the run comes before its unit
                line = f"{doing} [unit {state.done} of {state.total}]"
            line = f"{line}  {time_left}".rstrip()
            ERR.print(line, markup=False, soft_wrap=True)


def _stopped(out: str) -> None:
    ERR.print(
        f"\nStopped. The records are in {out}. The same command resumes the run.",
        soft_wrap=True,
        markup=False,
    )
