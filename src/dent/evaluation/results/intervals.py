"""Confidence intervals of proportions, paired differences, means and medians."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm
from scipy.stats import t as student

LEVEL: Final = 0.95
LEVEL_TEXT: Final = f"{LEVEL:.0%}"
"""The level as pages, tables and figures show it."""
OF_PROPORTION: Final = "Wilson"
OF_MEDIAN: Final = "order statistics"
"""Names of the interval methods for an accuracy and a median, as pages and figures show them."""
BY_BATCH: Final = "widest of {}, a bootstrap over batches and student on their means"
"""Name of the method of `over_clusters`, with the name of the other interval's method."""
BATCHES_INDEPENDENT: Final = "that batches are independent; members of one may not be"
"""The assumption of `over_clusters`."""
_DRAWS: Final = 4000


@lru_cache(maxsize=10_000)
def wilson(correct: int, total: int, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson, 1927).

    Args:
        correct: From 0 to `total`.
        total: At least 1.
        level: Confidence level.
    """
    interval = binomtest(correct, total).proportion_ci(confidence_level=level, method="wilson")
    return float(interval.low), float(interval.high)


def tango(
    only_first: int, only_second: int, total: int, level: float = LEVEL
) -> tuple[float, float]:
    """Return Tango's score interval of a difference of paired proportions (Tango, 1998).

    The difference is the first proportion minus the second. The interval contains all differences
    that a score test at this level does not reject. For few pairs, the level is only approximate
    (see `sign_test`). Its width is positive even if no pair disagrees: 0 of n does not prove that
    there is no difference.

    Args:
        only_first: Number of pairs in which only the first is correct.
        only_second: Number of pairs in which only the second is correct.
        total: Number of pairs, at least 1.
        level: Confidence level.
    """
    z = float(norm.ppf(0.5 + level / 2))
    observed = (only_first - only_second) / total

    def score(difference: float) -> float:
        return _tango_score(only_first, only_second, total, difference)

    edge = 1 - 1e-12
    low = high = observed
    if observed > -edge and score(-edge) > z:
        low = float(brentq(lambda d: score(d) - z, -edge, min(observed, edge), xtol=1e-12))
    elif observed > -edge:
        low = -1.0
    if observed < edge and score(edge) < -z:
        high = float(brentq(lambda d: score(d) + z, max(observed, -edge), edge, xtol=1e-12))
    elif observed < edge:
        high = 1.0
    return low, high


def sign_test(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of the exact sign test (McNemar's exact test).

    Unlike Tango's interval, it keeps its level for any number of pairs.

    Args:
        only_first: Number of pairs in which only the first is correct.
        only_second: Number of pairs in which only the second is correct.
    """
    pairs = only_first + only_second
    return float(binomtest(only_first, pairs).pvalue) if pairs else 1.0


def _tango_score(b: int, c: int, n: int, difference: float) -> float:
    """Return the score statistic of a difference, with the variance at the constrained maximum."""
    linear = -b - c + (2 * n - b + c) * difference
    constant = -c * difference * (1 - difference)
    root = max(linear * linear - 8 * n * constant, 0.0) ** 0.5
    q = (root - linear) / (4 * n)
    variance = n * (2 * q + difference * (1 - difference))
    above = b - c - n * difference
    if variance <= 0:
        return 0.0 if above == 0 else float(np.copysign(np.inf, above))
    return float(above / variance**0.5)


def of_mean(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Return Student's t interval of a mean, clipped to [-1, 1].

    Args:
        values: Independent values. With fewer than two, the interval is [-1, 1].
        level: Confidence level.
    """
    if len(values) < 2:
        return -1.0, 1.0
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    reach = float(student.ppf(0.5 + level / 2, len(values) - 1)) * error
    return max(mean - reach, -1.0), min(mean + reach, 1.0)


def of_cluster_means(
    values: Sequence[float], sizes: Sequence[int], level: float = LEVEL
) -> tuple[float, float]:
    """Return Student's t interval of a proportion or a difference of two, over whole batches.

    For batches of equal size, it is the interval of the mean of their values. Otherwise it is
    the interval of the linearized ratio estimator (Cochran, Sampling Techniques, 1977, section
    6.4).

    Args:
        values: For each batch, correct members, or those of the first minus those of the second.
        sizes: For each batch, the number of members.
        level: Confidence level.
    """
    ratio, size = sum(values) / sum(sizes), sum(sizes) / len(sizes)
    return of_mean(
        [ratio + (value - ratio * n) / size for value, n in zip(values, sizes, strict=True)], level
    )


def over_clusters(
    interval: tuple[float, float], values: Sequence[float], sizes: Sequence[int], seed: int
) -> tuple[float, float]:
    """Return the widest of an interval, a bootstrap over batches and Student's t over batches.

    A bootstrap by itself is too narrow for few batches.

    Args:
        interval: The interval that takes members of a batch for independent.
        values: For each batch, correct members, or those of the first minus those of the second.
        sizes: For each batch, the number of members.
        seed: Seed of the bootstrap.
    """
    over = cluster_bootstrap(values, sizes, seed), of_cluster_means(values, sizes)
    return min(interval[0], *(low for low, _ in over)), max(
        interval[1], *(high for _, high in over)
    )


def of_median(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Return an interval of the median by order statistics, for any distribution of the values.

    Args:
        values: Independent values.
        level: Smallest confidence level of the interval.

    Returns:
        Two of the values; None if there are too few (fewer than 6 at 95%).
    """
    count, ordered = len(values), sorted(values)
    # The largest count with a cumulative binomial probability of at most (1 - level) / 2.
    below = int(binom.ppf(0.5 - level / 2, count, 0.5)) if count else 0
    if binom.cdf(below, count, 0.5) > 0.5 - level / 2:
        below -= 1
    return None if below < 0 else (ordered[below], ordered[count - 1 - below])


def cluster_bootstrap(
    values: Sequence[float], sizes: Sequence[int], seed: int, level: float = LEVEL
) -> tuple[float, float]:
    """Return a percentile interval of a proportion or a difference of two, from whole batches.

    It resamples the batches, and accounts for members of one batch that share an adaptation.

    Args:
        values: For each batch, correct members, or those of the first minus those of the second.
        sizes: For each batch, the number of members.
        seed: Seed of the draws, so that the same records give the same interval.
        level: Confidence level.
    """
    draws = np.random.default_rng(seed).integers(len(sizes), size=(_DRAWS, len(sizes)))
    ratios = np.asarray(values)[draws].sum(axis=1) / np.asarray(sizes)[draws].sum(axis=1)
    low, high = np.quantile(ratios, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)
