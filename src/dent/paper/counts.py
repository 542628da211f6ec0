"""Count the rulings on distinct comparisons, for each sentence of the paper."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, get_args

from dent.paper.results import ClaimRuling, Judgement

RULINGS: Final[tuple[ClaimRuling, ...]] = get_args(ClaimRuling)


@dataclass(frozen=True)
class Sentence:
    """A sentence of the paper about one table.

    Attributes:
        says: The sentence.
        rulings: For each ruling, the number of distinct comparisons that have it.
    """

    says: str
    rulings: Mapping[ClaimRuling, int]


def count_rulings(judgements: Iterable[Judgement]) -> dict[ClaimRuling, int]:
    """Count judgements by ruling. Comparisons of the same runs count once for each claim."""
    counts = Counter(judgement.ruling for judgement in judgements if judgement.as_in is None)
    return {ruling: counts[ruling] for ruling in RULINGS}


def by_sentence(judgements: Iterable[Judgement]) -> tuple[Sentence, ...]:
    """Return the sentences that judgements are about, in the order of the judgements."""
    groups: dict[tuple[str, str], list[Judgement]] = {}
    for judgement in judgements:
        groups.setdefault((judgement.claim, judgement.says), []).append(judgement)
    return tuple(Sentence(says, count_rulings(group)) for (_, says), group in groups.items())
