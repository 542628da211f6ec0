"""When a run of the suite may stop attacking a defense: once no gain is possible any more.

The worst case of a defense only falls while attacks go on, and the static one is final before the
defense is attacked. So once the interval of the difference reaches down to 0 it does so at the end
as well, however often one looks: stopping there changes no verdict between gain and no gain.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from dent.evaluation.records.plan import Group, Plan, Unit, rounds, units
from dent.evaluation.records.schema import JournalRecord
from dent.evaluation.records.spec import STATIC, DefenseSpec, EvaluationSpec
from dent.evaluation.results.intervals import tango
from dent.evaluation.results.result import Decision, Difference
from dent.evaluation.results.scoring import Scorer, is_partial
from dent.evaluation.results.worst_case import (
    bootstrap_seed,
    by_sample,
    dependence_of,
    difference_to,
)


def decisions(
    spec: EvaluationSpec, plan: Plan, records: Mapping[str, JournalRecord]
) -> dict[str, Decision]:
    """By defense, where its attacks stopped; nothing of those that must be attacked to the end.

    Equal records give equal decisions: only rounds that are recorded whole are looked at.
    """
    if spec.schedule == "by-batch" or spec.settings.until == "end":
        return {}
    by_round = tuple(rounds(spec, plan))
    scorers = {each.name: _Watched(spec, plan, each, by_round) for each in spec.defenses}
    static = scorers[STATIC]
    static.add(by_round, records)
    if not static.attacked:
        return {}
    found = {}
    for defense in spec.defenses:
        if defense.name != STATIC:
            decision = scorers[defense.name].decide(by_round, records, static)
            if decision is not None:
                found[defense.name] = decision
    return found


def superfluous(
    spec: EvaluationSpec, plan: Plan, records: Mapping[str, JournalRecord]
) -> AbstractSet[str]:
    """The defenses of which no more units run: those decided, and then the static model as well.

    Its certificate counts where a defense gains or is harmful.
    """
    return _superfluous(spec, decisions(spec, plan, records))


def _superfluous(spec: EvaluationSpec, decided: Mapping[str, Decision]) -> AbstractSet[str]:
    others = {defense.name for defense in spec.defenses} - {STATIC}
    settled = bool(decided) and others == decided.keys()
    if settled and not any(decision.below for decision in decided.values()):
        return decided.keys() | {STATIC}
    return decided.keys()


def left(
    spec: EvaluationSpec,
    plan: Plan,
    records: Mapping[str, JournalRecord],
    decided: Mapping[str, Decision] | None = None,
) -> tuple[Unit, ...]:
    """The units that are not recorded and that no decision makes superfluous.

    Args:
        spec: The specification.
        plan: Its batches.
        records: Records of the finished units, by key.
        decided: The decisions of these records, where the caller has them.
    """
    if decided is None:
        decided = decisions(spec, plan, records)
    ended = _superfluous(spec, decided)
    return tuple(
        unit for unit in units(spec, plan) if unit.key not in records and unit.defense not in ended
    )


class _Watched:
    """One defense, scored round by round."""

    def __init__(
        self,
        spec: EvaluationSpec,
        plan: Plan,
        defense: DefenseSpec,
        by_round: Sequence[Sequence[Group]],
    ) -> None:
        self._spec, self._defense = spec, defense
        planned = [unit for groups in by_round for unit in self._own(groups)]
        self._planned = sum(unit.kind != "certificate" for unit in planned)
        self._done = 0
        self._scorer = Scorer(plan, planned, partly=is_partial(spec, defense.name))

    @property
    def attacked(self) -> bool:
        """Whether all that is submitted to it is recorded."""
        return self._done == self._planned

    def add(
        self, by_round: Iterable[Sequence[Group]], records: Mapping[str, JournalRecord]
    ) -> None:
        """Score all that is recorded in some rounds."""
        for groups in by_round:
            for unit in self._own(groups):
                if unit.key in records:
                    self._scorer.add(unit, records[unit.key])
                    self._done += unit.kind != "certificate"

    def decide(
        self,
        by_round: Sequence[Sequence[Group]],
        records: Mapping[str, JournalRecord],
        static: "_Watched",
    ) -> Decision | None:
        """Where the first round ended after which no gain was possible."""
        if all(unit.key in records for groups in by_round for unit in self._own(groups)):
            return None
        attacks: set[str] = set()
        for groups in by_round:
            units = self._own(groups)
            if any(unit.key not in records for unit in units):
                return None
            self.add([groups], records)
            attacks |= {unit.attack or "" for unit in units if unit.kind == "attack"}
            if not any(unit.kind in ("attack", "transfer") for unit in units):
                continue
            difference = self._difference(static)
            if not (self._drawn or can_gain(difference, by_sample=self._by_sample)):
                return Decision(
                    after=len(attacks),
                    of=len(self._spec.attacks),
                    at_most=difference.value or 0.0,
                    below=difference.interval is not None and difference.interval[1] < 0,
                )
        return None

    def _own(self, groups: Sequence[Group]) -> list[Unit]:
        return [unit for group in groups for unit in group if unit.defense == self._defense.name]

    @property
    def _by_sample(self) -> bool:
        return by_sample(dependence_of(self._defense, self._scorer.scores))

    @property
    def _drawn(self) -> bool:
        """Whether its answers are drawn at random: then more can be right after another attack."""
        return any(record.draws for of in self._scorer.scores.records.values() for record in of)

    def _difference(self, static: "_Watched") -> Difference:
        scores = self._scorer.scores
        dependence = dependence_of(self._defense, scores)
        seed = bootstrap_seed(self._spec)
        return difference_to(static._scorer.scores, scores, dependence, seed)


def can_gain(difference: Difference, *, by_sample: bool) -> bool:
    """Whether more attacks on the defense could still leave the whole interval above 0.

    Where members are taken one by one, each that falls lowers the interval. Where whole batches
    are, their sum falls, but who is right may change: the interval is then at best that of as many
    members more with no member lost.
    """
    if difference.value is None or difference.interval is None:
        return True
    if by_sample:
        return difference.interval[0] > 0
    surplus = max(round(difference.value * difference.total), 0)
    return tango(surplus, 0, difference.total)[0] > 0
