"""Compare the attacks by the defense's own gradient with the other kinds of attacks.

The numbers come from the records of the whole run, and take all attacks of a kind together. If
another kind is ahead after all attacks have run, the attacks by the gradient were too weak, and the
robust accuracy of the run is only an upper bound.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dent.attacks.adaptive import is_unavailable
from dent.evaluation.attack_kinds import AttackKind, is_black_box, kinds_of_attacks
from dent.evaluation.records.schema import UnitRecord
from dent.evaluation.records.spec import AttackSpec, EvaluationSpec
from dent.evaluation.results.scoring import Piece, Scores, of_batch, worst_of_batch

CHANCE_LEAD = 0.01
"""Share of the samples by which another kind of attack may be ahead by chance."""


@dataclass(frozen=True)
class GradientComparison:
    """How far the attacks by the gradient of one defense got, compared with the others.

    Attributes:
        samples: Number of attacked members in the scored batches; see `Scores.whole`.
        black_box: How many more members all query-only attacks together broke than all white-box
            attacks together. It is negative if they broke fewer, and None if either kind has not
            run. Square counts as part of a set, too, with at most the members that the set broke
            beyond those attacks.
        transfer: The same for transfer attacks.
        without_gradient: Number of members that no attack broke, and for which no white-box attack
            had a nonzero gradient in more than half of its steps; None if that is not recorded.
        unbroken: Number of members that no attack broke.
    """

    samples: int
    black_box: int | None
    transfer: int | None
    without_gradient: int | None
    unbroken: int

    @property
    def allowed(self) -> int:
        """Number of samples by which another kind of attack may be ahead."""
        return int(CHANCE_LEAD * self.samples)

    def beaten(self, ahead: int | None) -> bool | None:
        """Return whether a kind of attack is ahead by more than that; None if it has not run."""
        return None if ahead is None else ahead > self.allowed


def compare_gradients(
    scores: Scores, spec: EvaluationSpec, *, by_sample: bool, on_static: bool = False
) -> GradientComparison:
    """Compare the attacks on a defense, from its records.

    Args:
        scores: The scores of the defense.
        spec: The specification.
        by_sample: Whether the worst case may combine members of different submissions.
        on_static: Whether the defense is the static model.
    """
    specs = {attack.name: attack for attack in spec.attacks}
    kinds = kinds_of_attacks(spec.attacks, _ran(scores), on_static=on_static)
    by_kind: dict[str, dict[str, Mapping[int, Piece]]] = {
        "white-box": {},
        "black-box": {},
        "transfer": {},
        "other": {},
    }
    white: list[UnitRecord] = []
    for name, pieces in scores.submissions.items():
        records = scores.records.get(name, ())
        kind = _kind(name, records, specs, kinds)
        if kind in by_kind:
            by_kind[kind][name] = pieces
        if kind == "white-box":
            white += records
    remaining = {
        kind: _remaining(submissions, scores.whole, by_sample)
        for kind, submissions in by_kind.items()
        if kind != "other"
    }
    ahead = {
        kind: None
        if None in (remaining["white-box"], remaining[kind])
        else _ahead_by(remaining, kind)
        for kind in ("black-box", "transfer")
    }
    in_sets = _square_in_sets(scores, by_kind["other"], remaining["white-box"], by_sample)
    queried = [each for each in (ahead["black-box"], *in_sets) if each is not None]
    unbroken = dict(_unbroken(scores, by_sample))
    return GradientComparison(
        samples=sum(map(len, unbroken.values())),
        black_box=max(queried, default=None),
        transfer=ahead["transfer"],
        without_gradient=_without_gradient(unbroken, white),
        unbroken=sum(sum(rows) for rows in unbroken.values()),
    )


def _kind(
    name: str,
    records: Sequence[UnitRecord],
    specs: Mapping[str, AttackSpec],
    kinds: Mapping[str, AttackKind],
) -> str:
    submitted, _, attack = name.partition("/")
    if submitted == "transfer":
        return "transfer"
    if submitted != "attack" or not records:
        return "none"
    took_gradients = any(record.backwards for record in records)
    if is_black_box(specs[attack], took_gradients=took_gradients):
        return "black-box"
    return kinds[attack]


def _ran(scores: Scores) -> set[str]:
    """Return the names of the attacks that ran on the defense and were available for it."""
    return {
        name.removeprefix("attack/")
        for name, records in scores.records.items()
        if name.startswith("attack/")
        and any(not is_unavailable(record.notes) for record in records)
    }


def _remaining(
    submissions: Mapping[str, Mapping[int, Piece]], batches: Sequence[int], by_sample: bool
) -> float | None:
    """Return how many members no submission of a kind broke; None if a batch has none of them."""
    if not submissions or not batches:
        return None
    total = 0.0
    for index in batches:
        pieces = of_batch(submissions, index)
        if not pieces:
            return None
        total += sum(worst_of_batch(pieces, by_sample=by_sample)[0])
    return total


def _ahead_by(remaining: Mapping[str, float | None], kind: str) -> int:
    return round((remaining["white-box"] or 0.0) - (remaining[kind] or 0.0))


def _square_in_sets(
    scores: Scores,
    others: Mapping[str, Mapping[int, Piece]],
    remaining: float | None,
    by_sample: bool,
) -> Iterator[int]:
    """Yield for each set with Square how many members Square may have broken beyond white-box ones.

    Records have only the number of members that Square broke in a set. So these are at most that
    many, and at most those that the set broke and no white-box attack did.

    Args:
        scores: The scores of the defense.
        others: The submissions of the kind `other`.
        remaining: How many members all white-box attacks left; None if none has run.
        by_sample: Whether the worst case may combine members of different submissions.
    """
    for name, pieces in others.items():
        gains = [square_gains(record.claimed_after or {}) for record in scores.records[name]]
        left = _remaining({name: pieces}, scores.whole, by_sample)
        if any(gains) and left is not None and remaining is not None:
            yield min(sum(map(sum, gains)), round(remaining - left))


def square_gains(fooled: Mapping[str, int]) -> list[int]:
    """Return how many members Square fooled that the attacks before it in a set had not.

    Args:
        fooled: The number of fooled members after each part of the set, in order.
    """
    return [
        after - before
        for (_, before), (name, after) in pairwise(fooled.items())
        if name == "square"
    ]


def _unbroken(scores: Scores, by_sample: bool) -> Iterator[tuple[int, tuple[bool, ...]]]:
    for index in scores.whole:
        rights, _ = worst_of_batch(scores.of_batch(index), by_sample=by_sample)
        yield index, tuple(right > 0.5 for right in rights)


def _without_gradient(
    unbroken: Mapping[int, Sequence[bool]], white: Sequence[UnitRecord]
) -> int | None:
    sighted: dict[int, list[bool]] = {}
    for record in white:
        if record.batch is None or record.gradients is None or record.zero_gradients is None:
            continue
        useful = [
            count > 0 and 2 * zero < count
            for count, zero in zip(record.gradients, record.zero_gradients, strict=True)
        ]
        previous = sighted.setdefault(record.batch, [False] * len(useful))
        sighted[record.batch] = [a or b for a, b in zip(previous, useful, strict=True)]
    if not sighted or any(index not in sighted for index in unbroken):
        return None
    return sum(
        right and not has_gradient
        for index, rows in unbroken.items()
        for right, has_gradient in zip(rows, sighted[index], strict=True)
    )
