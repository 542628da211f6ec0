"""Score the records: which members did a defense classify correctly in each submission?"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dent.evaluation.records.plan import APART, Batch, Plan, Unit, units
from dent.evaluation.records.schema import CertificateRecord, JournalRecord, ProbeRecord, UnitRecord
from dent.evaluation.records.spec import STATIC, EvaluationSpec

Rights = tuple[float, ...]
"""For each member, whether it was correct (0 or 1), or in what share of several draws it was."""


@dataclass(frozen=True)
class Piece:
    """The score of one unit on one batch.

    If answers differ that should be equal, the one with the fewest correct attacked members counts.
    If the defense is randomized, one half of the draws chooses the worst submission and the other
    half scores it.

    Attributes:
        attacked: For each attacked member, whether it was correct, or in what share of the scoring
            draws it was.
        clean: The same for each clean member.
        missing: Number of attacked members without a prediction.
        choosing: For each attacked member, the share of the choosing draws in which it was correct;
            None if the defense is not randomized.
        every: For each attacked member, whether it was correct in every scoring draw; None if the
            defense is not randomized.
        clean_choosing: As `choosing`, for each clean member.
    """

    attacked: Rights
    clean: Rights
    missing: int
    choosing: Rights | None = None
    every: Rights | None = None
    clean_choosing: Rights | None = None

    @property
    def chooses(self) -> Rights:
        """The values by which the worst submission is chosen."""
        return self.attacked if self.choosing is None else self.choosing

    @property
    def chooses_clean(self) -> Rights:
        """The values by which the submission that is worst for the clean members is chosen."""
        return self.clean if self.clean_choosing is None else self.clean_choosing

    @property
    def always(self) -> Rights:
        """For each attacked member, whether it was correct in every scoring draw."""
        return self.attacked if self.every is None else self.every


@dataclass(frozen=True)
class Scores:
    """The scores of all records of one defense.

    Attributes:
        submissions: The scores by submission (`natural`, `attack/NAME`, `transfer/NAME`,
            `assembled`) and by batch index.
        records: The unit records of each submission.
        probe: The probe record, if there is one.
        whole: Indices of the scored batches, which have a record of every planned submission. A run
            by attack may stop between attacks. So in it, a batch of a defense other than the static
            model is scored as soon as it has one submission after its natural one.
    """

    submissions: Mapping[str, Mapping[int, Piece]]
    records: Mapping[str, Sequence[UnitRecord]]
    probe: ProbeRecord | None
    whole: tuple[int, ...]

    def of_batch(self, index: int) -> dict[str, Piece]:
        """Return the score of each recorded submission of a batch."""
        return of_batch(self.submissions, index)


def of_batch(submissions: Mapping[str, Mapping[int, Piece]], index: int) -> dict[str, Piece]:
    """Return the scores of one batch, by submission, without submissions that lack it."""
    return {name: pieces[index] for name, pieces in submissions.items() if index in pieces}


class Scorer:
    """A scorer of the records of one defense, one by one.

    Args:
        plan: The batches.
        planned: The units of the defense, in the run or in its shard.
        partly: Whether to score batches before every planned submission is recorded.
    """

    def __init__(self, plan: Plan, planned: Iterable[Unit], *, partly: bool = False) -> None:
        self._plan, self._partly = plan, partly
        names = [label(unit.kind, unit.attack) for unit in planned if unit.kind not in APART]
        self._submissions: dict[str, dict[int, Piece]] = {name: {} for name in names}
        self._records: dict[str, list[UnitRecord]] = {name: [] for name in names}
        self._probe: ProbeRecord | None = None
        self._certificate: CertificateRecord | None = None

    @property
    def scores(self) -> Scores:
        """The scores of all records that were added so far."""
        batches = (batch.index for batch in self._plan.batches)
        scored = tuple(index for index in batches if self.pieces(index) is not None)
        return Scores(self._submissions, self._records, self._probed, scored)

    @property
    def _probed(self) -> ProbeRecord | None:
        """The probe record, completed by the certificate that a run by attack makes at the end."""
        certificate = self._certificate
        if self._probe is None or certificate is None:
            return self._probe
        names = ("gradient", "huge_eps", "more_iterations")
        return self._probe.model_copy(update={name: getattr(certificate, name) for name in names})

    def add(self, unit: Unit, record: JournalRecord) -> dict[int, Piece]:
        """Score the record of a unit.

        Returns:
            The score by batch index; empty for a probe or a certificate.
        """
        pieces: dict[int, Piece] = {}
        if isinstance(record, CertificateRecord):
            self._certificate = record
            return {}
        if isinstance(record, ProbeRecord):
            self._probe = record
            return pieces
        batches = self._plan.batches if unit.batch is None else (self._plan.batches[unit.batch],)
        begin = 0
        for batch in batches:
            pieces[batch.index] = piece_of(batch, record, begin)
            begin += batch.size
        name = label(unit.kind, unit.attack)
        self._submissions[name] |= pieces
        self._records[name].append(record)
        return pieces

    def pieces(self, batch: int) -> dict[str, Piece] | None:
        """Return the scores of a batch by submission; None if too few of them are recorded."""
        recorded = of_batch(self._submissions, batch)
        needed = min(2, len(self._submissions)) if self._partly else len(self._submissions)
        begun = "natural" in recorded or "natural" not in self._submissions
        return recorded if recorded and begun and len(recorded) >= needed else None


def label(kind: str, attack: str | None) -> str:
    """Return the name of a submission, such as `attack/apgd-ce`."""
    return kind if attack is None else f"{kind}/{attack}"


def score(
    spec: EvaluationSpec, plan: Plan, records: Mapping[str, JournalRecord]
) -> dict[str, Scores]:
    """Return the scores of all records by defense, in the order of the spec."""
    planned: dict[str, list[Unit]] = {defense.name: [] for defense in spec.defenses}
    for unit in units(spec, plan):
        planned[unit.defense].append(unit)
    return {
        name: _of_defense(plan, planned[name], records, partly=is_partial(spec, name))
        for name in planned
    }


def is_partial(spec: EvaluationSpec, defense: str) -> bool:
    """Return whether to score a defense before all its units are recorded; see `Scores.whole`."""
    return spec.schedule == "by-attack" and defense != STATIC


def right(batch: Batch, served: Sequence[int | None]) -> Piece:
    """Score one answer to a batch: compare its predictions with the labels."""
    hits = tuple(predicted == truth for predicted, truth in zip(served, batch.labels, strict=True))
    return Piece(
        attacked=hits[: batch.attacked],
        clean=hits[batch.attacked :],
        missing=sum(predicted is None for predicted in served[: batch.attacked]),
    )


def piece_of(batch: Batch, record: UnitRecord, begin: int = 0) -> Piece:
    """Score all recorded answers to a batch.

    Args:
        batch: The batch.
        record: The record of a unit that submitted it.
        begin: Index of the batch's first member in the record.
    """
    rows = slice(begin, begin + batch.size)
    if record.draws:
        return _of_draws(batch, [draw[rows] for draw in record.draws])
    answers = [right(batch, record.served[rows])]
    answers += [right(batch, view[rows]) for view in record.views.values()]
    return min(answers, key=lambda piece: sum(piece.attacked))


def halves(draws: int) -> tuple[int, int]:
    """Return how many draws choose the worst submission, and how many others score it."""
    return draws // 2, draws - draws // 2


def _of_draws(batch: Batch, draws: Sequence[Sequence[int | None]]) -> Piece:
    pieces = [right(batch, draw) for draw in draws]
    half, scored = halves(len(pieces))
    scoring = [piece.attacked for piece in pieces[half:]]
    return Piece(
        attacked=_mean(scoring),
        clean=_mean([piece.clean for piece in pieces[half:]]),
        missing=round(sum(piece.missing for piece in pieces[half:]) / scored),
        choosing=_mean([piece.attacked for piece in pieces[:half]]),
        every=tuple(all(member) for member in zip(*scoring, strict=True)),
        clean_choosing=_mean([piece.clean for piece in pieces[:half]]),
    )


def _mean(rows: Sequence[Rights]) -> Rights:
    return tuple(sum(member) / len(rows) for member in zip(*rows, strict=True))


def worst_of_batch(pieces: Mapping[str, Piece], *, by_sample: bool) -> tuple[Rights, list[str]]:
    """Return the worst case over several submissions of one batch.

    Args:
        pieces: The scores by submission.
        by_sample: Whether each member may come from another submission.

    Returns:
        For each attacked member, whether it is still correct, or in what share of the draws it is;
        and the submissions that decided. By sample, these are, for every broken member, the first
        submission that broke it (or broke it most often). By batch, it is the submission with the
        fewest correct members (the first of several equal ones).
    """
    chosen = worst_submissions(pieces, by_sample=by_sample)
    rights = tuple(pieces[name].attacked[member] for member, name in enumerate(chosen))
    if not by_sample:
        return rights, chosen[:1]
    breaking = [name for member, name in enumerate(chosen) if pieces[name].chooses[member] < 1]
    return rights, breaking


def worst_submissions(pieces: Mapping[str, Piece], *, by_sample: bool) -> list[str]:
    """Return the submission that counts for each attacked member; see `worst_of_batch`.

    For a randomized defense, a few draws choose among many submissions, and often choose a weak one
    for a member. So if a single submission leaves fewer members correct, it counts for all of them.
    """
    names, choosing = list(pieces), [piece.chooses for piece in pieces.values()]
    totals = [sum(rights) for rights in choosing]
    single = [names[totals.index(min(totals))]] * len(choosing[0])
    if not by_sample:
        return single
    each = [names[rights.index(min(rights))] for rights in zip(*choosing, strict=True)]
    return min(each, single, key=lambda chosen: _left(pieces, chosen))


def _left(pieces: Mapping[str, Piece], chosen: Sequence[str]) -> float:
    return sum(pieces[name].attacked[member] for member, name in enumerate(chosen))


def worst_for_clean(scores: Scores, batches: Sequence[int]) -> dict[int, Rights]:
    """Return, by batch, the clean members of the submission that leaves the fewest of them correct.

    Batches without clean members are left out.
    """
    rights: dict[int, Rights] = {}
    for index in batches:
        pieces = scores.of_batch(index).values()
        worst = min(pieces, key=lambda piece: sum(piece.chooses_clean))
        if worst.clean:
            rights[index] = worst.clean
    return rights


def worst_case(
    scores: Scores, batches: Sequence[int], *, by_sample: bool
) -> tuple[dict[int, Rights], dict[str, int]]:
    """Return the worst case by batch, and how many samples or batches each submission decided."""
    rights: dict[int, Rights] = {}
    decided: Counter[str] = Counter()
    for index in batches:
        rights[index], deciding = worst_of_batch(scores.of_batch(index), by_sample=by_sample)
        decided.update(deciding)
    return rights, dict(decided)


def _of_defense(
    plan: Plan, planned: Sequence[Unit], records: Mapping[str, JournalRecord], *, partly: bool
) -> Scores:
    scorer = Scorer(plan, planned, partly=partly)
    for unit in planned:
        if unit.key in records:
            scorer.add(unit, records[unit.key])
    return scorer.scores
