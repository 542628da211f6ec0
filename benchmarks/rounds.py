"""Timing in rounds: in each, all calls take turns, so a drift of the machine's speed hits all."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Run = Callable[[], object]


def interleaved(
    runs: Mapping[str, Run], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds of each call in every round, after a first round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if round_:
                seconds[name].append(clock() - start)
    return seconds


def ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """Return the quartiles of the ratios `of / to` of each round."""
    return quartiles([a / b for a, b in zip(of, to, strict=True)])


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the lower quartile, the median and the upper quartile; a single value is all three."""
    if len(values) == 1:
        return [*values] * 3
    return statistics.quantiles(values, n=4, method="inclusive")
