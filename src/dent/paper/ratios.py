"""The ratio of two accuracies of the same samples, with its interval."""

from collections.abc import Mapping, Sequence
from typing import Final

from dent.evaluation.results.intervals import of_mean, over_clusters
from dent.evaluation.results.scoring import Rights
from dent.paper.results import Interval

METHOD: Final = "wider of student on the linearized ratio and, with the second cell as known, {}"
"""Name of the method, with the name of the difference's method."""


def ratio(
    ours: Mapping[int, Rights],
    theirs: Mapping[int, Rights],
    difference: Interval,
    *,
    dependent: bool,
    seed: int,
) -> tuple[float, Interval] | None:
    """Return one accuracy divided by another, with its interval; None if the other is 0.

    Student's interval of the linearized ratio accounts for the error of both accuracies, but it has
    no width if no pair disagrees. The interval of the difference has a width even then.

    Args:
        ours: For each batch index, whether each member was correct.
        theirs: The same for the same members, for the second accuracy.
        difference: The interval of the difference of the two.
        dependent: Whether to account for members of a batch that share an adaptation.
        seed: Seed of the bootstrap over batches.
    """
    second = _mean([list(rights) for rights in theirs.values()])
    if not second:
        return None
    value = _mean([list(rights) for rights in ours.values()]) / second
    residuals = [
        [a - value * b for a, b in zip(ours[index], theirs[index], strict=True)] for index in ours
    ]
    low, high = of_mean([residual for batch in residuals for residual in batch])
    if dependent:
        sums, sizes = [sum(batch) for batch in residuals], [len(batch) for batch in residuals]
        low, high = over_clusters((low, high), sums, sizes, seed)
    return value, (
        min(value + low / second, 1 + difference[0] / second),
        max(value + high / second, 1 + difference[1] / second),
    )


def _mean(batches: Sequence[Sequence[float]]) -> float:
    values = [value for batch in batches for value in batch]
    return sum(values) / len(values)
