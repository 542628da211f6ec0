"""Compute the gain that a number of samples can show, to judge before a run if it is worth it."""

from math import sqrt
from typing import Final

from scipy.optimize import brentq
from scipy.special import ndtri

from dent.evaluation.results.intervals import LEVEL

LOST: Final = 0.02
"""Typical share of the samples on which only the static model is correct, in runs of dent."""
POWER: Final = 0.8


def detectable_gain(
    samples: int, *, lost: float = LOST, power: float = POWER, level: float = LEVEL
) -> float | None:
    """Return the smallest true gain that a paired comparison of samples is likely to show.

    It uses the normal approximation for McNemar's test (Connor, 1987). Only the static model is
    correct on a share `lost` of the samples, and only the defense on a share `gain + lost`.

    Args:
        samples: Number of attacked samples, at least 1.
        lost: Share of the samples that the defense loses, in [0, 1).
        power: Probability that the whole interval lies above 0.
        level: Confidence level of the interval.

    Returns:
        The gain, in (0, 1]; None if so few samples are unlikely to show any gain.
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
