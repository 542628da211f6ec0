"""What the answers to the probe's queries show about a defense."""

from typing import Final

from dent.evaluation.records.schema import Comparison, ProbeRecord

DISTANCE: Final = 2e-3
"""Relative changes of a margin up to this count as rounding: the arithmetic depends on the batch
size, and GPUs may round to ten bits."""


def changed(comparison: Comparison) -> bool:
    """Return whether an answer changed by more than rounding."""
    return comparison.distance is None or comparison.distance > DISTANCE


def stateful(probe: ProbeRecord) -> bool:
    """Return whether a later answer to the same query under the same seed differed."""
    return changed(probe.again)


def turns(probe: ProbeRecord) -> bool | None:
    """Return whether the gradient changed after other queries; None if it was not compared."""
    return None if probe.again_gradient is None else probe.again_gradient > DISTANCE


def randomized(probe: ProbeRecord) -> bool:
    """Return whether another seed changed the answer, and the same seed did not."""
    return changed(probe.repeated) and not stateful(probe)


def other_batches(probe: ProbeRecord) -> tuple[Comparison, ...]:
    """Return the comparisons in which only the other members, or the order, differed."""
    comparisons = (probe.alone, probe.strangers, probe.permuted)
    return tuple(comparison for comparison in comparisons if comparison is not None)


def depends_on_batch(probe: ProbeRecord) -> bool | None:
    """Return whether an answer depends on the rest of the batch; None if it cannot be determined.

    It cannot be determined for a batch of one, or if answers also change for other reasons.
    """
    if not other_batches(probe) or stateful(probe) or randomized(probe):
        return None
    return any(changed(comparison) for comparison in other_batches(probe))


def hides_dependence(probe: ProbeRecord) -> bool:
    """Return whether a batch has several members, but their dependence cannot be determined."""
    return bool(other_batches(probe)) and depends_on_batch(probe) is None
