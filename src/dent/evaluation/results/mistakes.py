"""Check every evaluation for two mistakes, after which it does not measure what it says.

A model that expects other pixel units or another class order only guesses. A defense whose steps
change nothing is, in effect, a defense without steps. In both cases the numbers look normal.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from scipy.stats import binom

from dent.evaluation.records.probe_answers import stateful
from dent.evaluation.records.schema import UnitRecord
from dent.evaluation.results.result import Count, Diagnostic
from dent.evaluation.results.scoring import Scores

AT_CHANCE: Final = "natural accuracy at chance"
NOTHING_MOVED: Final = "no step moved anything"

_FEWEST: Final = 10
"""Smallest number of natural images that can tell a model from guessing."""
_SIGNIFICANT: Final = 0.05
_BETTER: Final = 1.25
_SKILL: Final = 0.02
"""Guessing may be slightly better than chance: `_BETTER` times chance, or chance plus `_SKILL` of
the gap between chance and 1, whichever is smaller."""
_ROUNDING: Final = 1e-6
"""Largest change of the mean entropy that counts as no effect, relative to the largest mean entropy
or to 1 nat, whichever is larger."""
_HALF: Final = 0.5


def suspicions(natural: Count, num_classes: int, scores: Scores) -> tuple[Diagnostic, ...]:
    """Return the two diagnostics of one defense, each only if it is raised.

    Args:
        natural: The natural images that the defense classified correctly.
        num_classes: The number of classes.
        scores: The records of the defense.
    """
    records = [record for units in scores.records.values() for record in units]
    # Online adaptation predicts before its step, so a step changes only the batches after it.
    online = scores.probe is not None and stateful(scores.probe)
    return (*_at_chance(natural, num_classes), *(() if online else _nothing_moved(records)))


def _at_chance(natural: Count, num_classes: int) -> Iterator[Diagnostic]:
    if natural.total < _FEWEST or num_classes < 2:
        return
    chance = 1 / num_classes
    guessing = min(_BETTER * chance, chance + _SKILL * (1 - chance))
    luck = float(binom.sf(natural.correct - 1, natural.total, guessing))
    if luck > _SIGNIFICANT:
        yield Diagnostic(
            name=AT_CHANCE,
            state="raised",
            value=luck,
            threshold=_SIGNIFICANT,
            sentence="The clean accuracy is no better than guessing, so no other number means "
            "anything. Check the pixel range (the model gets [0, 1]), the normalization, the "
            "weights, and the order of the classes.",
        )


def _nothing_moved(records: Sequence[UnitRecord]) -> Iterator[Diagnostic]:
    stepped = [record.trace.entropy for record in records if len(record.trace.entropy or ()) > 1]
    unchanged = [entropy for entropy in stepped if entropy and _constant(entropy)]
    if stepped and len(unchanged) / len(stepped) > _HALF:
        yield Diagnostic(
            name=NOTHING_MOVED,
            state="raised",
            value=len(unchanged) / len(stepped),
            threshold=_HALF,
            sentence=f"No step changed the entropy in {len(unchanged)} of {len(stepped)} "
            "submissions, so the steps have no effect there. Check that gradients reach the "
            "adapted layers, and that the softmax is not saturated.",
        )


def _constant(entropy: Sequence[float]) -> bool:
    return max(entropy) - min(entropy) <= _ROUNDING * max(1.0, *entropy)
