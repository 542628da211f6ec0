"""The progress of a run: the share that is done, the time left, and the accuracies so far."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from dent.evaluation.probe.unit import certificate_passes, probe_passes
from dent.evaluation.records.plan import APART, Plan, Unit, before_decision
from dent.evaluation.records.schema import JournalRecord
from dent.evaluation.records.spec import STATIC, DefenseSpec
from dent.evaluation.results.scoring import Rights, Scorer, is_partial, worst_of_batch
from dent.evaluation.results.worst_case import by_sample, dependence_of
from dent.evaluation.subject import Prepared
from dent.evaluation.submission.submitter import submissions_per_batch


@dataclass(frozen=True)
class Progress:
    """The progress of a run. The caller gets it before, during and after every unit.

    Attributes:
        done: Number of recorded units, including those of earlier sessions.
        total: Number of units of the run, or of its shard.
        unit: The unit that is running, or one of several; None at the end.
        within: Share of `unit` that is done, in [0, 1]; 0 if its attack does not report it.
        share: Share of all work that is done, in [0, 1], by expected cost.
        elapsed: Seconds of this session.
        remaining: Expected seconds left, by the slower of two measurements; None if nothing was
            measured yet.
        least: The same by the faster measurement.
        decision: Expected seconds until the run may first stop early, and 0 after that. `remaining`
            is then an upper bound. None if the run cannot stop early or nothing was measured yet.
        natural: For each defense, (correct, total) of the attacked members in their natural batch.
        robust: For each defense, (correct, total) in the worst case over all submissions, on the
            batches that are scored so far.
    """

    done: int
    total: int
    unit: Unit | None
    within: float
    share: float
    elapsed: float
    remaining: float | None
    least: float | None
    decision: float | None
    natural: Mapping[str, tuple[int, int]]
    robust: Mapping[str, tuple[int, int]]


OnProgress = Callable[[Progress], None]
_Group = tuple[str, str, str | None]
"""Kind, defense and attack. Units with the same three cost about the same."""


class Passes(NamedTuple):
    """The maximum cost of a unit, in forward passes of one batch.

    A gradient counts as one more pass: it goes back through the last forward of a defense and does
    not repeat the adaptation. For a unit of several batches, every batch counts.
    """

    adapted: float
    """Number of passes for which the defense adapts."""
    static: float
    """Number of passes without adaptation."""

    def seconds(self, pace: float, static: float) -> float:
        """Return the seconds of all passes, given those of an adapted and of a static pass."""
        return self.adapted * pace + self.static * static

    def pace(self, seconds: float, static: float) -> float:
        """Return the seconds of an adapted pass, given those of all passes and of a static pass."""
        return max(seconds - self.static * static, 0.0) / max(self.adapted, 1.0)


def passes_of(prepared: Prepared, unit: Unit) -> Passes:
    """Return the maximum cost of a unit. All passes of the static model count as `adapted`."""
    if unit.kind in APART:
        passes = probe_passes if unit.kind == "probe" else certificate_passes
        return Passes(float(sum(passes(prepared))), 0.0)
    subject, plan = prepared.subject, prepared.plan
    batches = len(plan.batches) if unit.batch is None else 1
    total, cheap = float(submissions_per_batch(unit.kind) * batches), 0.0
    if unit.kind == "attack":
        attack, classes = subject.attack(unit.attack or ""), len(prepared.spec.dataset.classes)
        size = plan.attacked if unit.batch is None else plan.batches[unit.batch].attacked
        total += sum(attack.passes(classes, subject.threat.norm, size))
        cheap = float(sum(attack.unadapted(classes, subject.threat.norm)))
    cheap = 0.0 if unit.defense == STATIC else min(cheap, total)
    return Passes(total - cheap, cheap)


class Tally:
    """The members that one defense predicts correctly so far, counted by the rules of the verdict.

    Args:
        spec: The defense.
        plan: The batches.
        planned: The units of the defense, in the run or in its shard.
        partly: Whether to count batches for which not all planned units are recorded.

    Attributes:
        natural: (correct, total) of the attacked members in their natural batch; None before the
            first natural unit.
        robust: (correct, total) in the worst case, on the batches that are scored so far; None
            before the first.
    """

    def __init__(
        self, spec: DefenseSpec, plan: Plan, planned: Sequence[Unit], *, partly: bool = False
    ) -> None:
        self._spec, self._scorer = spec, Scorer(plan, planned, partly=partly)
        self._natural: dict[int, Rights] = {}
        self._worst: dict[int, Rights] = {}
        self._by_sample = not spec.batch_dependent
        self.natural: tuple[int, int] | None = None
        self.robust: tuple[int, int] | None = None

    def count(self, unit: Unit, record: JournalRecord) -> None:
        """Count a recorded unit."""
        pieces_by_batch = self._scorer.add(unit, record)
        if unit.kind == "probe":
            self._by_sample = by_sample(dependence_of(self._spec, self._scorer.scores))
        if unit.kind == "natural":
            self._natural |= {index: piece.attacked for index, piece in pieces_by_batch.items()}
            self.natural = _count(self._natural)
        for index in pieces_by_batch or tuple(self._worst):
            pieces = self._scorer.pieces(index)
            if pieces is not None and len(pieces) > 1:
                self._worst[index], _ = worst_of_batch(pieces, by_sample=self._by_sample)
        if self._worst:
            self.robust = _count(self._worst)


class Tracker:
    """A counter of finished units, which estimates from their times how long the others will take.

    Args:
        prepared: The prepared evaluation.
        units: All units of the run or of its shard, finished or not.
    """

    def __init__(self, prepared: Prepared, units: Sequence[Unit]) -> None:
        self._units = tuple(units)
        self._passes: dict[_Group, Passes] = {}
        self._left: dict[_Group, int] = defaultdict(int)
        for unit in self._units:
            group = _group(unit)
            self._left[group] += 1
            if group not in self._passes:
                self._passes[group] = passes_of(prepared, unit)
        self._early: frozenset[_Group] | None = None
        if prepared.spec.schedule == "by-attack" and prepared.spec.settings.until == "decided":
            self._early = frozenset(map(_group, before_decision(prepared.spec, prepared.plan)))
        self._times: dict[_Group, list[float]] = defaultdict(list)
        self._static: list[float] = []
        self._seconds: dict[_Group, tuple[float, float] | None] | None = None  # per unit of a group
        self._tallies = {
            defense.name: Tally(
                defense,
                prepared.plan,
                [planned for planned in units if planned.defense == defense.name],
                partly=is_partial(prepared.spec, defense.name),
            )
            for defense in prepared.spec.defenses
        }
        self.done = 0

    @property
    def total(self) -> int:
        """Number of units that are planned."""
        return len(self._units)

    def count(self, unit: Unit, record: JournalRecord) -> None:
        """Count a recorded unit."""
        self.done += 1
        self._seconds = None
        group = _group(unit)
        self._left[group] -= 1
        self._times[group].append(record.timing.total)
        if record.timing.static is not None:
            self._static.append(record.timing.static)
        self._tallies[unit.defense].count(unit, record)

    def leave_out(self, units: Iterable[Unit]) -> None:
        """Drop units that will not run, so that they no longer count."""
        dropped = set(units) & set(self._units)
        self._units = tuple(unit for unit in self._units if unit not in dropped)
        for unit in dropped:
            self._left[_group(unit)] -= 1

    def state(self, running: Sequence[tuple[Unit, float]], elapsed: float) -> Progress:
        """Return the progress of the run.

        Args:
            running: The units that run at the same time, each with the share that is done, in
                [0, 1]. The first one is shown.
            elapsed: Seconds of this session.
        """
        units_left: dict[_Group, float] = dict(self._left)
        for unit, within in running:
            units_left[_group(unit)] -= min(within, 1.0)
        cost = {group: sum(passes) for group, passes in self._passes.items()}
        cost_left = sum(cost[group] * count for group, count in units_left.items())
        cost_all = sum(
            cost[group] * (count + len(self._times[group])) for group, count in self._left.items()
        )
        fewest_seconds, most_seconds = self._seconds_left(units_left)
        decision = None
        if self._early is not None and most_seconds is not None:
            early = {group: units_left[group] for group in self._early if group in units_left}
            decision = self._seconds_left(early)[1]
        at_once = max(len(running), 1)
        current, within = running[0] if running else (None, 0.0)
        tallies = self._tallies.items()
        return Progress(
            done=self.done,
            total=self.total,
            unit=current,
            within=within,
            share=1 - cost_left / max(cost_all, 1e-9),
            elapsed=elapsed,
            remaining=None if most_seconds is None else most_seconds / at_once,
            least=None if fewest_seconds is None else fewest_seconds / at_once,
            decision=None if decision is None else decision / at_once,
            natural={name: tally.natural for name, tally in tallies if tally.natural},
            robust={name: tally.robust for name, tally in tallies if tally.robust},
        )

    def _seconds_left(
        self, units_left: Mapping[_Group, float]
    ) -> tuple[float | None, float | None]:
        if self._seconds is None:
            self._seconds = {
                group: self._measured(group) or self._expected(group) for group in units_left
            }
        totals = [0.0, 0.0]
        for group, count in units_left.items():
            bounds = self._seconds[group]
            if count and bounds is None:
                return None, None
            for index, seconds in enumerate(bounds or ()):
                totals[index] += count * seconds
        return min(totals), max(totals)

    def _measured(self, group: _Group) -> tuple[float, float] | None:
        """Return the seconds of a unit, as the smaller and the larger of two means over its group.

        One mean is over every other finished unit, and the other over the rest. None if no unit of
        the group is finished.
        """
        times = self._times[group]
        if not times:
            return None
        low, high = sorted((fmean(times[::2]), fmean(times[1::2] or times)))
        return low, high

    def _expected(self, group: _Group) -> tuple[float, float] | None:
        """Return the expected seconds of a unit if none of its group is finished.

        The two values use the fastest and the slowest pace of its defense; None without a pace.
        """
        paces = self._paces(group)
        if paces is None:
            return None
        low, high = (self._passes[group].seconds(pace, self._of_static()) for pace in paces)
        return low, high

    def _paces(self, group: _Group) -> tuple[float, float] | None:
        """Return the fastest and the slowest measured pace of a defense, in seconds per pass.

        They come from finished units of the same kind, or else of any kind. The probe and the
        certificate are the last choice, because their passes differ: they have few or many members,
        and other gradients.
        """
        kind, defense, _ = group
        timed = [key for key, times in self._times.items() if times and key[1] == defense]
        units = [key for key in timed if key[0] not in APART]
        nearest = [key for key in units if key[0] == kind] or units or timed
        paces = [
            self._passes[key].pace(fmean(self._times[key]), self._of_static()) for key in nearest
        ]
        return (min(paces), max(paces)) if paces else None

    def _of_static(self) -> float:
        """Return the seconds of a static forward, from natural units or from the static model."""
        if self._static:
            return fmean(self._static)
        static_groups = [
            group for group in self._times if group[1] == STATIC and group[0] not in APART
        ]
        passes = sum(
            self._passes[group].adapted * len(self._times[group]) for group in static_groups
        )
        return sum(sum(self._times[group]) for group in static_groups) / max(passes, 1.0)


def _group(unit: Unit) -> _Group:
    return unit.kind, unit.defense, unit.attack


def _count(rights: Mapping[int, Rights]) -> tuple[int, int]:
    return round(sum(map(sum, rights.values()))), sum(map(len, rights.values()))
