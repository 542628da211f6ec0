"""Who was right, member by member, under everything that was submitted to a defense."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dent.evaluation.plan import Batch, Plan, Unit, units
from dent.evaluation.records import JournalRecord, ProbeRecord, UnitRecord
from dent.evaluation.spec import EvaluationSpec

Rights = tuple[bool, ...]


@dataclass(frozen=True)
class Piece:
    """What one unit served of one batch.

    Attributes:
        attacked: Per attacked member, whether it was right.
        company: Per other member, whether it was right.
        missing: Attacked members without a prediction.
    """

    attacked: Rights
    company: Rights
    missing: int


@dataclass(frozen=True)
class Scores:
    """All that was recorded of one defense, scored.

    Attributes:
        submissions: By what was submitted (`natural`, `attack/NAME`, `transfer/NAME`,
            `assembled`), by batch index, what was right.
        records: The units behind each submission.
        probe: What it was asked at first, if that is recorded.
        whole: Batches of which every planned submission is recorded.
    """

    submissions: Mapping[str, Mapping[int, Piece]]
    records: Mapping[str, Sequence[UnitRecord]]
    probe: ProbeRecord | None
    whole: tuple[int, ...]


def label(kind: str, attack: str | None) -> str:
    """What a submission is called."""
    return kind if attack is None else f"{kind}/{attack}"


def score(
    spec: EvaluationSpec, plan: Plan, records: Mapping[str, JournalRecord]
) -> dict[str, Scores]:
    """Score all records, by defense in the order of the spec."""
    planned: dict[str, list[Unit]] = {defense.name: [] for defense in spec.defenses}
    for unit in units(spec, plan):
        planned[unit.defense].append(unit)
    return {name: _of_defense(plan, planned[name], records) for name in planned}


def right(batch: Batch, served: Sequence[int | None]) -> Piece:
    """Score one batch: who was served its label."""
    hits = [at == truth for at, truth in zip(served, batch.labels, strict=True)]
    return Piece(
        attacked=tuple(hits[: batch.attacked]),
        company=tuple(hits[batch.attacked :]),
        missing=sum(at is None for at in served[: batch.attacked]),
    )


def worst_of_batch(pieces: Mapping[str, Piece], *, by_sample: bool) -> tuple[Rights, list[str]]:
    """The worst that several submissions of one batch leave.

    Args:
        pieces: By submission, what was right.
        by_sample: Whether each member may be taken from another submission.

    Returns:
        Per attacked member, whether it is still right; and which submissions decided: of each
        member that fell the first that broke it, or the one whole batch with the fewest right (the
        first of equals).
    """
    if not by_sample:
        worst = min(pieces, key=lambda name: sum(pieces[name].attacked))
        return pieces[worst].attacked, [worst]
    members = range(len(next(iter(pieces.values())).attacked))
    first = [
        next((name for name, piece in pieces.items() if not piece.attacked[at]), None)
        for at in members
    ]
    return tuple(name is None for name in first), [name for name in first if name is not None]


def worst_case(
    scores: Scores, batches: Sequence[int], *, by_sample: bool
) -> tuple[dict[int, Rights], dict[str, int]]:
    """The worst case by batch, and how many samples or batches each submission decided."""
    rights: dict[int, Rights] = {}
    decided: Counter[str] = Counter()
    for index in batches:
        pieces = {name: by_batch[index] for name, by_batch in scores.submissions.items()}
        rights[index], by = worst_of_batch(pieces, by_sample=by_sample)
        decided.update(by)
    return rights, dict(decided)


def _of_defense(
    plan: Plan, planned: Sequence[Unit], records: Mapping[str, JournalRecord]
) -> Scores:
    submissions: dict[str, dict[int, Piece]] = {}
    behind: dict[str, list[UnitRecord]] = {}
    probe: ProbeRecord | None = None
    whole = {batch.index for batch in plan.batches}
    for unit in planned:
        record = records.get(unit.key)
        if isinstance(record, ProbeRecord):
            probe = record
        if unit.kind == "probe":
            continue
        name = label(unit.kind, unit.attack)
        by_batch = submissions.setdefault(name, {})
        behind.setdefault(name, [])
        if not isinstance(record, UnitRecord):
            whole -= set(whole) if unit.batch is None else {unit.batch}
            continue
        behind[name].append(record)
        members = plan.batches if unit.batch is None else (plan.batches[unit.batch],)
        begin = 0
        for batch in members:
            by_batch[batch.index] = right(batch, record.served[begin : begin + batch.size])
            begin += batch.size
    return Scores(submissions, behind, probe, tuple(sorted(whole)))
