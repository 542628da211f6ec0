"""What benchmarks make of rounds in which all contestants take turns."""

import statistics
from collections.abc import Sequence


def quartiles(values: Sequence[float]) -> list[float]:
    """Return lower quartile, median and upper quartile; a single value is all three."""
    if len(values) == 1:
        return [*values] * 3
    return statistics.quantiles(values, n=4, method="inclusive")
