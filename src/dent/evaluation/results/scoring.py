"""Who was right, member by member, under everything that was submitted to a defense."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dent.evaluation.records.plan import Batch, Plan, Unit, units
from dent.evaluation.records.schema import JournalRecord, ProbeRecord, UnitRecord
from dent.evaluation.records.spec import EvaluationSpec

Rights = tuple[float, ...]
"""Per member, how often it was right: 0 or 1, or a share of several draws."""


@dataclass(frozen=True)
class Piece:
    """What one unit served of one batch.

    Of several answers that differ where they should not, the one that left fewest attacked members
    right. Of answers that are drawn at random, the share of the draws that score.

    Attributes:
        attacked: Per attacked member, whether it was right.
        clean: Per clean member, whether it was right.
        missing: Attacked members without a prediction.
        choosing: Per attacked member, the share of the draws that choose the worst submission;
            None where nothing is drawn, and `attacked` chooses.
        every: Per attacked member, whether it was right in every draw that scores; as `choosing`.
    """

    attacked: Rights
    clean: Rights
    missing: int
    choosing: Rights | None = None
    every: Rights | None = None

    @property
    def chooses(self) -> Rights:
        """What the worst submission is chosen by."""
        return self.attacked if self.choosing is None else self.choosing

    @property
    def always(self) -> Rights:
        """Whether a member was right in all that was drawn for it."""
        return self.attacked if self.every is None else self.every


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


class Scorer:
    """Scores the records of one defense, one by one.

    Args:
        plan: The batches.
        planned: The units of the defense: of the run, or of its shard.
    """

    def __init__(self, plan: Plan, planned: Iterable[Unit]) -> None:
        self._plan = plan
        names = [label(each.kind, each.attack) for each in planned if each.kind != "probe"]
        self._submissions: dict[str, dict[int, Piece]] = {name: {} for name in names}
        self._records: dict[str, list[UnitRecord]] = {name: [] for name in names}
        self._probe: ProbeRecord | None = None

    @property
    def scores(self) -> Scores:
        """All that was added so far, scored."""
        batches = (by_batch.keys() for by_batch in self._submissions.values())
        whole = set.intersection(*map(set, batches)) if self._submissions else set[int]()
        return Scores(self._submissions, self._records, self._probe, tuple(sorted(whole)))

    def add(self, unit: Unit, record: JournalRecord) -> dict[int, Piece]:
        """Score the record of a unit.

        Returns:
            By batch, what it left; nothing of a probe.
        """
        found: dict[int, Piece] = {}
        if isinstance(record, ProbeRecord):
            self._probe = record
            return found
        batches = self._plan.batches if unit.batch is None else (self._plan.batches[unit.batch],)
        begin = 0
        for batch in batches:
            found[batch.index] = piece_of(batch, record, begin)
            begin += batch.size
        name = label(unit.kind, unit.attack)
        self._submissions[name] |= found
        self._records[name].append(record)
        return found

    def pieces(self, batch: int) -> dict[str, Piece] | None:
        """What every submission of a batch left; None where one of them is not recorded."""
        found = self._submissions.items()
        whole = all(batch in by_batch for _, by_batch in found)
        return {name: by_batch[batch] for name, by_batch in found} if whole else None


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
    """Score one answer to a batch: who was served its label."""
    hits = tuple(at == truth for at, truth in zip(served, batch.labels, strict=True))
    return Piece(
        attacked=hits[: batch.attacked],
        clean=hits[batch.attacked :],
        missing=sum(at is None for at in served[: batch.attacked]),
    )


def piece_of(batch: Batch, record: UnitRecord, begin: int = 0) -> Piece:
    """Score all answers to a batch that are recorded.

    Args:
        batch: The batch.
        record: Of a unit that submitted it.
        begin: Where its members begin in the record.
    """
    rows = slice(begin, begin + batch.size)
    if record.draws:
        return _of_draws(batch, [draw[rows] for draw in record.draws])
    answers = [right(batch, record.served[rows])]
    answers += [right(batch, view[rows]) for view in record.views.values()]
    return min(answers, key=lambda piece: sum(piece.attacked))


def _of_draws(batch: Batch, draws: Sequence[Sequence[int | None]]) -> Piece:
    drawn = [right(batch, draw) for draw in draws]
    half = len(drawn) // 2
    scoring = [piece.attacked for piece in drawn[half:]]
    return Piece(
        attacked=_mean(scoring),
        clean=_mean([piece.clean for piece in drawn[half:]]),
        missing=round(sum(piece.missing for piece in drawn[half:]) / (len(drawn) - half)),
        choosing=_mean([piece.attacked for piece in drawn[:half]]),
        every=tuple(all(member) for member in zip(*scoring, strict=True)),
    )


def _mean(rows: Sequence[Rights]) -> Rights:
    return tuple(sum(member) / len(rows) for member in zip(*rows, strict=True))


def worst_of_batch(pieces: Mapping[str, Piece], *, by_sample: bool) -> tuple[Rights, list[str]]:
    """The worst that several submissions of one batch leave.

    Args:
        pieces: By submission, what was right.
        by_sample: Whether each member may be taken from another submission.

    Returns:
        Per attacked member, whether it is still right, or how often; and which submissions decided:
        of each member that fell the first that broke it (most often), or the one whole batch with
        the fewest right (the first of equals).
    """
    chosen = worst_submissions(pieces, by_sample=by_sample)
    rights = tuple(pieces[name].attacked[at] for at, name in enumerate(chosen))
    if not by_sample:
        return rights, chosen[:1]
    fell = [name for at, name in enumerate(chosen) if pieces[name].chooses[at] < 1]
    return rights, fell


def worst_submissions(pieces: Mapping[str, Piece], *, by_sample: bool) -> list[str]:
    """Of each attacked member, the submission that counts; see `worst_of_batch`."""
    members = range(len(next(iter(pieces.values())).attacked))
    if by_sample:
        return [min(pieces, key=lambda name: pieces[name].chooses[at]) for at in members]
    worst = min(pieces, key=lambda name: sum(pieces[name].chooses))
    return [worst for _ in members]


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
    scorer = Scorer(plan, planned)
    for unit in planned:
        if unit.key in records:
            scorer.add(unit, records[unit.key])
    return scorer.scores
