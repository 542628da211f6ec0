"""What the answers to the probe's questions mean."""

from typing import Final

from dent.evaluation.records.schema import Comparison, ProbeRecord

DISTANCE: Final = 2e-3
"""Relative changes of a margin up to this are arithmetic: kernels differ with the batch's size, and
on GPUs they round to ten bits."""


def moved(comparison: Comparison) -> bool:
    """Whether an answer changed by more than rounding."""
    return comparison.distance is None or comparison.distance > DISTANCE


def stateful(probe: ProbeRecord) -> bool:
    """Whether a later answer to the same question with the same seed differed."""
    return moved(probe.again)


def randomized(probe: ProbeRecord) -> bool:
    """Whether another seed changed the answer (and the same seed did not)."""
    return moved(probe.repeated) and not stateful(probe)


def other_batches(probe: ProbeRecord) -> tuple[Comparison, ...]:
    """The comparisons in which only the rest of the batch differed."""
    comparisons = (probe.alone, probe.strangers, probe.permuted)
    return tuple(comparison for comparison in comparisons if comparison is not None)


def depends(probe: ProbeRecord) -> bool | None:
    """Whether an answer depends on the rest of the batch; None where this cannot be determined.

    It cannot for a batch of one, or for a defense whose answers change by themselves.
    """
    if not other_batches(probe) or stateful(probe) or randomized(probe):
        return None
    return any(moved(comparison) for comparison in other_batches(probe))
