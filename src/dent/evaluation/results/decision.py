"""Decide when a run of the suite stops attacking a defense: once no gain can be shown anymore.

This is about the samples of the run: with more samples, a small gain might be shown.

More attacks only lower the worst case of a defense, and the static worst case is final before the
defense is attacked. So once the lower end of the interval of the difference is at or below 0, it
stays there, no matter how often the run checks it. Stopping then never changes a verdict between
gain and no gain.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from dent.evaluation.records.plan import Group, Plan, Unit, rounds, units
from dent.evaluation.records.schema import JournalRecord
from dent.evaluation.records.spec import STATIC, DefenseSpec, EvaluationSpec
from dent.evaluation.results.intervals import tango
from dent.evaluation.results.result import Decision, Dependence, Difference
from dent.evaluation.results.scoring import Rights, Scorer, Scores, is_partial
from dent.evaluation.results.worst_case import (
    bootstrap_seed,
    by_sample,
    dependence_of,
    difference_to,
    worst_cases,
)


def decisions(
    spec: EvaluationSpec, plan: Plan, records: Mapping[str, JournalRecord]
) -> dict[str, Decision]:
    """Return where the attacks on each defense stop, for the defenses that stop early.

    Equal records give equal decisions, because only completely recorded rounds count.
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
    """Return the defenses whose remaining units need not run.

    These are the decided defenses. If all defenses are decided and no difference is below 0, the
    static model is also one of them: only the verdicts *robust gain* and *harmful* need its
    certificate.
    """
    return _superfluous(spec, decisions(spec, plan, records))


def _superfluous(spec: EvaluationSpec, decided: Mapping[str, Decision]) -> AbstractSet[str]:
    others = {defense.name for defense in spec.defenses} - {STATIC}
    settled = bool(decided) and others == decided.keys()
    if settled and not any(decision.below for decision in decided.values()):
        return decided.keys() | {STATIC}
    return decided.keys()


def units_left(
    spec: EvaluationSpec,
    plan: Plan,
    records: Mapping[str, JournalRecord],
    decided: Mapping[str, Decision] | None = None,
) -> tuple[Unit, ...]:
    """Return the units that still have to run: not recorded, and needed after all decisions.

    Args:
        spec: The specification.
        plan: Its batches.
        records: Records of the finished units, by key.
        decided: The decisions for these records; None derives them.
    """
    if decided is None:
        decided = decisions(spec, plan, records)
    ended = _superfluous(spec, decided)
    return tuple(
        unit for unit in units(spec, plan) if unit.key not in records and unit.defense not in ended
    )


class _Watched:
    """A defense that is scored round by round."""

    def __init__(
        self,
        spec: EvaluationSpec,
        plan: Plan,
        defense: DefenseSpec,
        by_round: Sequence[Sequence[Group]],
    ) -> None:
        self._spec, self._plan, self._defense = spec, plan, defense
        planned = [unit for groups in by_round for unit in self._own(groups)]
        self._planned = sum(unit.kind != "certificate" for unit in planned)
        self._done = 0
        self._scorer = Scorer(plan, planned, partly=is_partial(spec, defense.name))

    @property
    def attacked(self) -> bool:
        """Whether every planned unit of the defense but its certificate is recorded."""
        return self._done == self._planned

    def add(
        self, by_round: Iterable[Sequence[Group]], records: Mapping[str, JournalRecord]
    ) -> None:
        """Score all recorded units of some rounds."""
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
        """Return the decision after the last complete round; None while a gain can be shown.

        It counts the attacks that ran on every batch. The next one may have run on some of them.
        Also None if every unit is recorded, because then nothing was left out.
        """
        if all(unit.key in records for groups in by_round for unit in self._own(groups)):
            return None
        attacks: set[str] = set()
        last = self._plan.batches[-1].index
        for groups in by_round:
            own = self._own(groups)
            if any(unit.key not in records for unit in own):
                break
            self.add([groups], records)
            attacks |= {
                unit.attack or ""
                for unit in own
                if unit.kind == "attack" and unit.batch in (last, None)
            }
        # Once no gain is possible, none is possible later, so only the last round is checked.
        if self._drawn or self._can_gain(static):
            return None
        difference = self._difference(static)
        return Decision(
            after=len(attacks),
            of=len(self._spec.attacks),
            at_most=difference.value or 0.0,
            below=difference.interval is not None and difference.interval[1] < 0,
        )

    def _own(self, groups: Sequence[Group]) -> list[Unit]:
        return [unit for group in groups for unit in group if unit.defense == self._defense.name]

    @property
    def _drawn(self) -> bool:
        """Whether the defense is randomized: if so, its score can rise after another attack."""
        return any(record.draws for of in self._scorer.scores.records.values() for record in of)

    def _can_gain(self, static: "_Watched") -> bool:
        scores, dependence = self._scores_with_dependence()
        ours, theirs = worst_cases(static._scorer.scores, scores, dependence)
        return can_gain(ours, theirs, by_sample=by_sample(dependence))

    def _difference(self, static: "_Watched") -> Difference:
        scores, dependence = self._scores_with_dependence()
        return difference_to(static._scorer.scores, scores, dependence, bootstrap_seed(self._spec))

    def _scores_with_dependence(self) -> tuple[Scores, Dependence]:
        scores = self._scorer.scores
        return scores, dependence_of(self._defense, scores)


def can_gain(ours: Mapping[int, Rights], theirs: Mapping[int, Rights], *, by_sample: bool) -> bool:
    """Return whether the whole interval could still be above 0 after more attacks on the defense.

    If the worst case is per sample, every member that falls lowers the interval. If it is per
    batch, another submission counts only if it leaves fewer members correct, but it may leave other
    members correct. At best, a changed batch is then also correct on members that only the static
    model had, and loses one more of the members that only the defense had. This leaves fewer pairs
    that disagree, which narrows the interval. So for each number of changed batches, the ones that
    remove the most such pairs are tried.

    Args:
        ours: For each batch index, whether the defense is correct on each member (1 or 0) in its
            worst case.
        theirs: The same for the static model, whose worst case is final.
        by_sample: Whether the worst case is per sample.
    """
    only_ours, only_theirs, total, exchanged = 0, 0, 0, []
    for index, rights in ours.items():
        more = sum(a > b for a, b in zip(rights, theirs[index], strict=True))
        less = sum(a < b for a, b in zip(rights, theirs[index], strict=True))
        only_ours, only_theirs, total = only_ours + more, only_theirs + less, total + len(rights)
        exchanged.append(less - max(0, 1 - (more - less)))
    possible = [(only_ours, only_theirs)]
    if not by_sample:
        for fewer in sorted(exchanged, reverse=True):
            if fewer <= 0:
                break
            only_ours, only_theirs = only_ours - fewer - 1, only_theirs - fewer
            possible.append((only_ours, only_theirs))
    return not total or any(tango(*found, total)[0] > 0 for found in possible)
