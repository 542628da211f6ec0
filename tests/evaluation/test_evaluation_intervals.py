"""Intervals, against closed forms, brute force, and their nominal coverage."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial
from scipy.stats import t as student

from dent.evaluation.results.intervals import (
    cluster_bootstrap,
    of_cluster_means,
    of_mean,
    tango,
    wilson,
)

Z = 1.959963984540054


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=60, deadline=None)
def test_wilson_matches_its_closed_form(counts: tuple[int, int]) -> None:
    k, n = counts
    middle = (k + Z * Z / 2) / (n + Z * Z)
    half = Z / (n + Z * Z) * math.sqrt(k * (n - k) / n + Z * Z / 4)
    low, high = wilson(k, n)
    assert low == pytest.approx(max(middle - half, 0.0), abs=1e-9)
    assert high == pytest.approx(min(middle + half, 1.0), abs=1e-9)


def likelihood_score(b: int, c: int, n: int, delta: float) -> float:
    """Oracle for Tango's statistic: the nuisance parameter is found by numerical optimization."""

    def cost(q: float) -> float:
        p_b, p_c, rest = q + delta, q, 1 - 2 * q - delta
        terms = ((b, p_b), (c, p_c), (n - b - c, rest))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in terms if k)

    low, high = max(0.0, -delta), (1 - delta) / 2
    q = float(minimize_scalar(cost, bounds=(low, high), method="bounded",
                              options={"xatol": 1e-12}).x)  # fmt: skip
    return (b - c - n * delta) / math.sqrt(n * (2 * q + delta - delta * delta))


@pytest.mark.parametrize(
    ("b", "c", "n"), [(12, 2, 50), (1, 1, 30), (7, 0, 20), (0, 7, 20), (30, 25, 128), (3, 9, 14)]
)
def test_tango_inverts_the_score_test(b: int, c: int, n: int) -> None:
    low, high = tango(b, c, n)
    assert -1 < low < (b - c) / n < high < 1
    assert likelihood_score(b, c, n, low) == pytest.approx(Z, rel=1e-3)
    assert likelihood_score(b, c, n, high) == pytest.approx(-Z, rel=1e-3)


@pytest.mark.parametrize("n", [1, 16, 256])
def test_tango_without_disagreeing_pairs_matches_its_closed_form(n: int) -> None:
    half = Z * Z / (n + Z * Z)
    assert tango(0, 0, n) == pytest.approx((-half, half), abs=1e-6)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.data())
@settings(max_examples=60, deadline=None)
def test_tango_contains_the_difference_and_is_antisymmetric(
    counts: tuple[int, int], data: st.DataObject
) -> None:
    b, n = counts
    c = data.draw(st.integers(0, n - b))
    low, high = tango(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert tango(c, b, n) == pytest.approx((-high, -low), abs=1e-6)


def test_tango_has_nominal_coverage_for_few_pairs() -> None:
    n = 20
    pairs = [(b, c) for b, c in product(range(n + 1), repeat=2) if b + c <= n]
    intervals = {pair: tango(*pair, n) for pair in pairs}
    for p_b, p_c in ((0.05, 0.05), (0.2, 0.1), (0.4, 0.05)):
        model = multinomial(n, [p_b, p_c, 1 - p_b - p_c])
        covered = sum(
            float(model.pmf([b, c, n - b - c]))
            for b, c in pairs
            if intervals[b, c][0] - 1e-9 <= p_b - p_c <= intervals[b, c][1] + 1e-9
        )
        assert 0.93 <= covered <= 0.99, (p_b, p_c)


def test_the_bootstrap_draws_batches_and_not_samples() -> None:
    # Each batch of 32 is all won or all lost. If samples were drawn, it would be much narrower.
    differences = [32, -32, 32, -32, 32, 32, -32, 32]
    low, high = cluster_bootstrap(differences, [32] * 8, seed=1)
    spread = np.std([1, -1, 1, -1, 1, 1, -1, 1]) / math.sqrt(8)
    assert (high - low) == pytest.approx(2 * Z * spread, rel=0.25)
    assert cluster_bootstrap(differences, [32] * 8, seed=1) == (low, high)


def test_the_bootstrap_of_equal_batches_has_no_width() -> None:
    assert cluster_bootstrap([2] * 9, [8] * 9, seed=0) == (0.25, 0.25)


def test_of_cluster_means_matches_student_t_and_the_ratio_estimator() -> None:
    differences = [3, -2, 5, 0, 1, 4, -1, 2]
    alike = of_cluster_means(differences, [16] * 8)
    assert alike == pytest.approx(of_mean([each / 16 for each in differences]))
    # The ratio estimator's variance: sum (y - R x)^2 / (n (n - 1) mean(x)^2).
    sizes = [16, 16, 16, 16, 16, 16, 16, 5]
    ratio, size = sum(differences) / sum(sizes), sum(sizes) / 8
    spread = sum((y - ratio * x) ** 2 for y, x in zip(differences, sizes, strict=True))
    reach = student.ppf(0.975, 7) * (spread / (8 * 7)) ** 0.5 / size
    assert of_cluster_means(differences, sizes) == pytest.approx((ratio - reach, ratio + reach))


def test_of_cluster_means_keeps_its_level_with_eight_batches_unlike_the_bootstrap() -> None:
    """Without a true difference, the lower end should be above 0 in at most 2.5% of runs."""
    rng = np.random.default_rng(0)
    runs, size = 2000, 128
    chances = 0.5 + 0.1 * rng.standard_normal((runs, 8, 2))
    both = rng.binomial(size, chances.clip(0, 1))
    above = {"bootstrap": 0, "students": 0}
    for ours, theirs in both.transpose(0, 2, 1):
        differences = [int(each) for each in ours - theirs]
        above["bootstrap"] += cluster_bootstrap(differences, [size] * 8, seed=0)[0] > 0
        above["students"] += of_cluster_means(differences, [size] * 8)[0] > 0
    assert above["bootstrap"] / runs > 0.045
    assert above["students"] / runs < 0.035
