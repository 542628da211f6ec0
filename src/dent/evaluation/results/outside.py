"""Add challenges, which are adversarial images from outside a run, to the run's own submissions.

They count in the worst case and in the difference to the static model. Diagnostics, gates and the
decision to stop early use only the run's own attacks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dent.evaluation.records.plan import Plan
from dent.evaluation.records.schema import ChallengeRecord, UnitRecord
from dent.evaluation.results.result import ChallengeSummary, Dependence
from dent.evaluation.results.scoring import Piece, Scores, label, piece_of
from dent.evaluation.results.worst_case import worst_of

KIND = "challenge"


@dataclass(frozen=True)
class WithOutside:
    """The scores of a defense with its challenges.

    Attributes:
        challenges: The challenges that were submitted to the defense, in the order of submission.
        stages: The scores without any challenge, then with each challenge added in turn.
    """

    challenges: tuple[ChallengeRecord, ...]
    stages: tuple[Scores, ...]

    @property
    def scores(self) -> Scores:
        """The scores with all challenges."""
        return self.stages[-1]


def with_challenges(
    scores: Mapping[str, Scores], plan: Plan, challenges: Sequence[ChallengeRecord]
) -> dict[str, WithOutside]:
    """Add challenges to the scores of every defense that they were submitted to."""
    return {name: _of_defense(name, own, plan, challenges) for name, own in scores.items()}


def _of_defense(
    name: str, own: Scores, plan: Plan, challenges: Sequence[ChallengeRecord]
) -> WithOutside:
    stages, mine = [own], []
    for challenge in challenges:
        units = [unit for unit in challenge.units if unit.defense == name]
        if units:
            mine.append(challenge)
            stages.append(_with(stages[-1], plan, label(KIND, challenge.short), units))
    return WithOutside(tuple(mine), tuple(stages))


def _with(scores: Scores, plan: Plan, name: str, units: Sequence[UnitRecord]) -> Scores:
    pieces: dict[int, Piece] = dict(scores.submissions.get(name, {}))
    for unit in units:
        if unit.batch is not None:
            pieces[unit.batch] = piece_of(plan.batches[unit.batch], unit)
    records = [*scores.records.get(name, ()), *units]
    return replace(
        scores,
        submissions={**scores.submissions, name: pieces},
        records={**scores.records, name: records},
    )


def summaries(challenged: WithOutside, dependence: Dependence) -> tuple[ChallengeSummary, ...]:
    """Return, by challenge, what it left correct and how far it lowered the worst case."""
    stages = challenged.stages
    steps = zip(challenged.challenges, stages[:-1], stages[1:], strict=True)
    return tuple(_summary(*step, dependence) for step in steps)


def _summary(
    challenge: ChallengeRecord, before: Scores, after: Scores, dependence: Dependence
) -> ChallengeSummary:
    pieces = after.submissions[label(KIND, challenge.short)].values()
    left = [worst_of(scores, dependence).served.correct for scores in (before, after)]
    return ChallengeSummary(
        by=challenge.by,
        url=challenge.url,
        note=challenge.note,
        date=challenge.date,
        digest=challenge.digest,
        made_for=challenge.defense,
        attack=challenge.attack,
        correct=round(sum(sum(piece.attacked) for piece in pieces)),
        total=sum(len(piece.attacked) for piece in pieces),
        lowered=max(left[0] - left[1], 0),
    )
