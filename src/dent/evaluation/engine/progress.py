"""How far a run is, how long it will take, and what it has found so far."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dent.evaluation.probe.unit import probe_passes
from dent.evaluation.records.plan import Unit
from dent.evaluation.records.schema import JournalRecord, UnitRecord
from dent.evaluation.results.scoring import Piece, Rights, label, piece_of, worst_of_batch
from dent.evaluation.subject import Prepared
from dent.evaluation.submission.submitter import submissions_per_batch


@dataclass(frozen=True)
class Progress:
    """Where a run stands; handed to the caller before, within and after every unit.

    Attributes:
        done: Units recorded, those of earlier sessions included.
        total: Units of the run, or of its shard.
        unit: The one that runs, or one of those that run at once; None at the end.
        within: How far it is, from 0 to 1, where its attack says so.
        share: How much of the whole work is done, from 0 to 1, by its expected cost.
        elapsed: Seconds of this session.
        remaining: Seconds expected; None where nothing is known yet.
        natural: By defense, (correct, of) attacked members in their natural batch.
        robust: By defense, (correct, of) in the worst case over what was submitted, on the
            batches that are done with it.
    """

    done: int
    total: int
    unit: Unit | None
    within: float
    share: float
    elapsed: float
    remaining: float | None
    natural: Mapping[str, tuple[int, int]]
    robust: Mapping[str, tuple[int, int]]


OnProgress = Callable[[Progress], None]


def passes_of(prepared: Prepared, unit: Unit) -> float:
    """What a unit costs at most, in forward passes of one batch.

    A gradient counts as a pass: backwards through the last forward of a defense is not its
    adaptation again. Answers of the published protocol count one a batch.
    """
    if unit.kind == "probe":
        return float(sum(probe_passes(prepared)))
    subject, plan = prepared.subject, prepared.plan
    served = submissions_per_batch(unit.kind) * (len(plan.batches) if unit.batch is None else 1)
    if unit.kind != "attack":
        return float(served)
    attack = subject.attack(unit.attack or "")
    size = plan.attacked if unit.batch is None else plan.batches[unit.batch].attacked
    cost = attack.passes(len(prepared.spec.dataset.classes), subject.threat.norm, size)
    return float(served + cost.forwards + cost.backwards)


class Tracker:
    """Counts units, and learns from those done how long the others will take.

    Args:
        prepared: What is evaluated.
        units: Those to do, done already or not.
    """

    def __init__(self, prepared: Prepared, units: Sequence[Unit]) -> None:
        self._spec, self._plan = prepared.spec, prepared.plan
        self._units = tuple(units)
        self._cost: dict[tuple[str, str, str | None], float] = {}
        self._left: dict[tuple[str, str, str | None], int] = defaultdict(int)
        for unit in self._units:
            group = _group(unit)
            self._left[group] += 1
            if group not in self._cost:
                self._cost[group] = passes_of(prepared, unit)
        self._times: dict[tuple[str, str, str | None], list[float]] = defaultdict(list)
        self._natural: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._robust: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._open: dict[tuple[str, int], dict[str, Piece]] = {}
        self._last = self._last_units()
        self.done = 0

    @property
    def total(self) -> int:
        """Units of the run."""
        return len(self._units)

    def count(self, unit: Unit, record: JournalRecord) -> None:
        """Take note of a recorded unit."""
        self.done += 1
        group = _group(unit)
        self._left[group] -= 1
        self._times[group].append(record.timing.total)
        if isinstance(record, UnitRecord) and unit.batch is not None:
            self._score(unit, unit.batch, record)

    def state(self, running: Sequence[tuple[Unit, float]], elapsed: float) -> Progress:
        """Where the run stands.

        Args:
            running: The units that run at once, each with how far it is, from 0 to 1; the first of
                them is the one that is shown.
            elapsed: Seconds of this session.
        """
        left = self._seconds_left()
        done_cost = sum(self._cost[g] * len(times) for g, times in self._times.items())
        left_cost = sum(self._cost[g] * count for g, count in self._left.items())
        for unit, within in running:
            part = min(within, 1.0)
            if left is not None:
                left -= part * (self._seconds(_group(unit)) or 0.0)
            done_cost += part * self._cost[_group(unit)]
            left_cost -= part * self._cost[_group(unit)]
        shown, within = running[0] if running else (None, 0.0)
        return Progress(
            done=self.done,
            total=self.total,
            unit=shown,
            within=within,
            share=done_cost / max(done_cost + left_cost, 1e-9),
            elapsed=elapsed,
            remaining=None if left is None else max(left / max(len(running), 1), 0.0),
            natural={name: (a, b) for name, (a, b) in self._natural.items()},
            robust={name: (a, b) for name, (a, b) in self._robust.items()},
        )

    def _seconds_left(self) -> float | None:
        total = 0.0
        for group, count in self._left.items():
            seconds = self._seconds(group)
            if seconds is None:
                return None
            total += seconds * count
        return total

    def _seconds(self, group: tuple[str, str, str | None]) -> float | None:
        """Seconds of one unit: as measured, else by the defense's pace, else by any pace."""
        if times := self._times.get(group):
            return sum(times) / len(times)
        same = {g: t for g, t in self._times.items() if g[1] == group[1] and t}
        known = same or {g: t for g, t in self._times.items() if t}
        cost = sum(self._cost[g] * len(times) for g, times in known.items())
        if not cost:
            return None
        return self._cost[group] * sum(map(sum, known.values())) / cost

    def _score(self, unit: Unit, batch: int, record: UnitRecord) -> None:
        piece = piece_of(self._plan.batches[batch], record)
        if unit.kind == "natural":
            _add(self._natural[unit.defense], piece.attacked)
        pieces = self._open.setdefault((unit.defense, batch), {})
        pieces[label(unit.kind, unit.attack)] = piece
        if self._last[unit.defense, batch] == unit and len(pieces) > 1:
            declared = next(d for d in self._spec.defenses if d.name == unit.defense)
            rights, _ = worst_of_batch(pieces, by_sample=not declared.batch_dependent)
            _add(self._robust[unit.defense], rights)
            del self._open[unit.defense, batch]

    def _last_units(self) -> dict[tuple[str, int], Unit]:
        return {
            (unit.defense, unit.batch): unit
            for unit in self._units
            if unit.batch is not None and unit.kind != "probe"
        }


def _group(unit: Unit) -> tuple[str, str, str | None]:
    return unit.kind, unit.defense, unit.attack


def _add(count: list[int], rights: Rights) -> None:
    count[0] += round(sum(rights))
    count[1] += len(rights)
