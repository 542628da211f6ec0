"""Signs that attacks by the defense's own gradient were weaker than the defense.

They are looked for in the records of the whole run, over all attacks of a kind together. After
every follow-up has run, either a sign is gone, or what the run says is an upper bound.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dent.evaluation.records.schema import UnitRecord
from dent.evaluation.records.spec import EvaluationSpec
from dent.evaluation.results.scoring import Piece, Scores, worst_of_batch
from dent.evaluation.suites import Stand, stand_of

TOLERATED = 0.01
"""Share of the samples by which another kind of attack may be ahead: attacks begin at random."""


@dataclass(frozen=True)
class Symptoms:
    """What the records of one defense show.

    Attributes:
        samples: Attacked members of the batches that all attacks have met.
        black_box: How many more of them attacks by queries alone broke than all attacks by the
            defense's gradient together; below 0 where they broke fewer, None where one of the kinds
            has not run.
        transfer: The same of what was found on other models.
        blind: Members that stand and for which no attack had a gradient other than zero in more
            than half of its steps; None where that is not on record.
        standing: Members that stand.
    """

    samples: int
    black_box: int | None
    transfer: int | None
    blind: int | None
    standing: int

    @property
    def allowed(self) -> int:
        """Samples by which another kind of attack may be ahead."""
        return int(TOLERATED * self.samples)

    def beaten(self, ahead: int | None) -> bool | None:
        """Whether a kind of attack is further ahead than that; None where it has not run."""
        return None if ahead is None else ahead > self.allowed


def symptoms_of(scores: Scores, spec: EvaluationSpec, *, by_sample: bool) -> Symptoms:
    """Read the symptoms of a defense off its records.

    Args:
        scores: Of the defense.
        spec: What was evaluated.
        by_sample: Whether members of different submissions may be put together.
    """
    stands = {each.name: stand_of(each) for each in spec.attacks}
    kinds: dict[str, dict[str, Mapping[int, Piece]]] = {
        "white-box": {},
        "black": {},
        "transfer": {},
    }
    white: list[UnitRecord] = []
    for name, pieces in scores.submissions.items():
        records = scores.records.get(name, ())
        kind = _kind(name, records, stands)
        if kind in kinds:
            kinds[kind][name] = pieces
        if kind == "white-box":
            white += records
    left = {kind: _left(found, scores.whole, by_sample) for kind, found in kinds.items()}
    ahead = {
        kind: None if None in (left["white-box"], left[kind]) else _less(left, kind)
        for kind in ("black", "transfer")
    }
    stood = dict(_standing(scores, by_sample))
    return Symptoms(
        samples=sum(map(len, stood.values())),
        black_box=ahead["black"],
        transfer=ahead["transfer"],
        blind=_blind(stood, white),
        standing=sum(sum(rows) for rows in stood.values()),
    )


def _kind(name: str, records: Sequence[UnitRecord], stands: Mapping[str, Stand]) -> str:
    submitted, _, attack = name.partition("/")
    if submitted == "transfer":
        return "transfer"
    if submitted != "attack" or not records:
        return "none"
    stand = stands.get(attack, "other")
    if stand == "white-box" and not any(record.backwards for record in records):
        return "black"
    return stand


def _left(
    found: Mapping[str, Mapping[int, Piece]], batches: Sequence[int], by_sample: bool
) -> float | None:
    """How many members all submissions of a kind leave right together."""
    if not found or not batches:
        return None
    total = 0.0
    for index in batches:
        pieces = {name: by_batch[index] for name, by_batch in found.items()}
        total += sum(worst_of_batch(pieces, by_sample=by_sample)[0])
    return total


def _less(left: Mapping[str, float | None], kind: str) -> int:
    return round((left["white-box"] or 0.0) - (left[kind] or 0.0))


def _standing(scores: Scores, by_sample: bool) -> Iterator[tuple[int, tuple[bool, ...]]]:
    for index in scores.whole:
        pieces = {name: by_batch[index] for name, by_batch in scores.submissions.items()}
        rights, _ = worst_of_batch(pieces, by_sample=by_sample)
        yield index, tuple(right > 0.5 for right in rights)


def _blind(stood: Mapping[int, Sequence[bool]], white: Sequence[UnitRecord]) -> int | None:
    seen: dict[int, list[bool]] = {}
    for record in white:
        if record.batch is None or record.gradients is None or record.zero_gradients is None:
            continue
        alive = [
            taken > 0 and 2 * zero < taken
            for taken, zero in zip(record.gradients, record.zero_gradients, strict=True)
        ]
        known = seen.setdefault(record.batch, [False] * len(alive))
        seen[record.batch] = [a or b for a, b in zip(known, alive, strict=True)]
    if not seen or any(index not in seen for index in stood):
        return None
    return sum(
        right and not alive
        for index, rows in stood.items()
        for right, alive in zip(rows, seen[index], strict=True)
    )
