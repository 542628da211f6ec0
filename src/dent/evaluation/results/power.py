"""What gain a number of samples can show, to know before a run whether it is worth its time."""

from math import sqrt
from typing import Final

from scipy.optimize import brentq
from scipy.special import ndtri

from dent.evaluation.results.intervals import LEVEL

LOST: Final = 0.02
"""Share of the samples that the static model keeps and the defense loses, in runs of dent."""
POWER: Final = 0.8


def detectable_gain(
    samples: int, *, lost: float = LOST, power: float = POWER, level: float = LEVEL
) -> float | None:
    """The smallest true gain that a paired comparison of so many samples probably shows.

    By the normal approximation for McNemar's test (Connor, 1987): of the samples, a share `lost` is
    right with the static model alone, and a share `gain + lost` with the defense alone.

    Args:
        samples: Attacked samples, at least 1.
        lost: Share that the defense loses, in [0, 1).
        power: Probability of an interval that lies above 0 as a whole.
        level: Confidence level of the interval.

    Returns:
        The gain, in (0, 1]; None where so few samples probably show none at all.
    """
    alpha, beta = float(ndtri(0.5 + level / 2)), float(ndtri(power))

    def missing(gain: float) -> float:
        discordant = gain + 2 * lost
        spread = alpha * sqrt(discordant) + beta * sqrt(max(discordant - gain**2, 0.0))
        return spread - gain * sqrt(samples)

    largest = 1 - 2 * lost
    if missing(largest) > 0:
        return None
    gain: float = brentq(missing, 1e-9, largest)
    return gain
