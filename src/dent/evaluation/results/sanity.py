"""Two signs that a run measures something else than it says, looked for in every evaluation.

A model in the wrong units of pixels, or with its classes in another order, is right by chance; a
defense whose steps move nothing is the static model. Either gives numbers that look like any other.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from scipy.stats import binom

from dent.evaluation.records.schema import UnitRecord
from dent.evaluation.results.result import Count, Diagnostic
from dent.evaluation.results.scoring import Scores

AT_CHANCE: Final = "natural accuracy at chance"
NOTHING_MOVED: Final = "no step moved anything"

_FEWEST: Final = 10
"""Natural images; of fewer, guessing and knowing look alike."""
_SIGNIFICANT: Final = 0.05
_BETTER: Final = 1.25
_SKILL: Final = 0.02
"""A guesser is granted a little more than chance: so many times as much, or so much of what lies
between chance and 1, whichever is less."""
_ROUNDING: Final = 1e-6
"""Changes of a mean entropy, relative to it or to 1 nat, that steps without effect may leave."""
_HALF: Final = 0.5


def suspicions(natural: Count, classes: int, scores: Scores) -> tuple[Diagnostic, ...]:
    """The two diagnostics of one defense, each only where it is raised.

    Args:
        natural: How many natural images it got right.
        classes: How many there are to guess among.
        scores: What is recorded of it.
    """
    records = [record for found in scores.records.values() for record in found]
    return (*_at_chance(natural, classes), *_nothing_moved(records))


def _at_chance(natural: Count, classes: int) -> Iterator[Diagnostic]:
    if natural.total < _FEWEST or classes < 2:
        return
    chance = 1 / classes
    guessing = min(_BETTER * chance, chance + _SKILL * (1 - chance))
    luck = float(binom.sf(natural.correct - 1, natural.total, guessing))
    if luck > _SIGNIFICANT:
        yield Diagnostic(
            name=AT_CHANCE,
            state="raised",
            value=luck,
            threshold=_SIGNIFICANT,
            sentence="Natural images are classified no better than by guessing, so no other figure "
            "means anything: check the units of pixels (the model gets [0, 1]), its normalization, "
            "its weights, and the order of its classes.",
        )


def _nothing_moved(records: Sequence[UnitRecord]) -> Iterator[Diagnostic]:
    stepped = [each.trace.entropy for each in records if len(each.trace.entropy or ()) > 1]
    still = [entropy for entropy in stepped if entropy and _constant(entropy)]
    if stepped and len(still) / len(stepped) > _HALF:
        yield Diagnostic(
            name=NOTHING_MOVED,
            state="raised",
            value=len(still) / len(stepped),
            threshold=_HALF,
            sentence=f"No step moved anything in {len(still)} of {len(stepped)} submissions: what "
            "is measured there is the static model. Do gradients reach the adapted layers, and are "
            "the logits so far apart that their softmax is saturated?",
        )


def _constant(entropy: Sequence[float]) -> bool:
    return max(entropy) - min(entropy) <= _ROUNDING * max(1.0, *entropy)
