"""How far a run is, how long it will take, and what it has found so far."""

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
    """The state of a run; passed to the caller before, during and after every unit.

    Attributes:
        done: Units recorded, those of earlier sessions included.
        total: Units of the run, or of its shard.
        unit: The one that runs, or one of those that run at once; None at the end.
        within: How far it is, from 0 to 1, where its attack says so.
        share: How much of the whole work is done, from 0 to 1, by its expected cost.
        elapsed: Seconds of this session.
        remaining: Seconds expected, by the slower of two measurements; None where there is none.
        least: The same by the faster.
        decision: For a run that stops early, the expected seconds until it may first do so, then 0.
            `remaining` is then an upper bound.
        natural: For each defense, (correct, of) attacked members in their natural batch.
        robust: For each defense, (correct, of) in the worst case over all submissions, on the
            batches that are done with it.
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
"""Kind, defense and attack: units that cost the same."""


class Passes(NamedTuple):
    """What a unit costs at most, in forward passes of one batch.

    A gradient counts as a pass: backwards through the last forward of a defense is not its
    adaptation again. Answers of the published protocol count one a batch.
    """

    adapted: float
    """Passes for which the defense adapts."""
    static: float
    """Passes for which nothing does."""

    def seconds(self, pace: float, static: float) -> float:
        """The seconds they take, given the seconds of a pass of either kind."""
        return self.adapted * pace + self.static * static

    def pace(self, seconds: float, static: float) -> float:
        """Seconds of a pass that adapts, given the seconds of all passes."""
        return max(seconds - self.static * static, 0.0) / max(self.adapted, 1.0)


def passes_of(prepared: Prepared, unit: Unit) -> Passes:
    """What a unit costs at most; nothing adapts in the static model."""
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
    """How many members of one defense are correct so far, by the rules of the verdict.

    Args:
        spec: The defense.
        plan: The batches.
        planned: Its units: of the run, or of its shard.
        partly: Count batches of which not all that is planned is recorded.

    Attributes:
        natural: (correct, of) attacked members in their natural batch.
        robust: (correct, of) in the worst case, on the batches of which all is recorded.
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
    """Counts units, and estimates from the finished ones how long the others will take.

    Args:
        prepared: The prepared evaluation.
        units: Those to do, done already or not.
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
        self._seconds: dict[_Group, tuple[float, float] | None] | None = None  # of a unit of each
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
        """Units of the run."""
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
        """Drop units that will not run."""
        dropped = set(units) & set(self._units)
        self._units = tuple(unit for unit in self._units if unit not in dropped)
        for unit in dropped:
            self._left[_group(unit)] -= 1

    def state(self, running: Sequence[tuple[Unit, float]], elapsed: float) -> Progress:
        """Where the run stands.

        Args:
            running: The units that run at once, each with how far it is, from 0 to 1; the first of
                them is the one that is shown.
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
        """Seconds of a unit, from finished units of its group: every other one, and the rest."""
        times = self._times[group]
        if not times:
            return None
        low, high = sorted((fmean(times[::2]), fmean(times[1::2] or times)))
        return low, high

    def _expected(self, group: _Group) -> tuple[float, float] | None:
        """Seconds of a unit of a group with no finished unit: by the faster and the slower pace."""
        paces = self._paces(group)
        if paces is None:
            return None
        low, high = (self._passes[group].seconds(pace, self._of_static()) for pace in paces)
        return low, high

    def _paces(self, group: _Group) -> tuple[float, float] | None:
        """The fastest and the slowest measured pace of a defense.

        From units of the same kind, else any units, else its probe, whose passes differ from those
        of units: few or many members, with gradients of their own.
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
        """Seconds of a static forward, timed beside the defenses or from the static units."""
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
