"""Estimate the time of a batch from the times of earlier batches."""

_WEIGHT = 0.3
_MARGIN = 1.25


class StepCost:
    """A running estimate of the seconds of a batch, by its size and number of steps.

    A step costs two forwards, and the prediction one more. For each batch size (by powers of two),
    the estimate is an exponentially weighted average of the seconds per image and forward, because
    an image costs more in a small batch. A size without a measurement uses the nearest one.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def observe(self, images: int, steps: int, seconds: float) -> None:
        """Update the estimate with a batch that took `seconds`."""
        unit = seconds / (images * _forwards(steps))
        size = images.bit_length()
        average = self._seconds.get(size)
        self._seconds[size] = unit if average is None else average + _WEIGHT * (unit - average)

    def seconds(self, images: int, steps: int) -> float:
        """Return the estimated seconds of a batch, plus a margin; 0 before the first batch."""
        if not self._seconds:
            return 0.0
        size = images.bit_length()
        nearest = min(self._seconds, key=lambda observed: (abs(observed - size), observed))
        return _MARGIN * self._seconds[nearest] * images * _forwards(steps)

    def steps_within(self, images: int, most: int, seconds: float) -> int | None:
        """Return how many of `most` steps fit into `seconds`; None if not even one does.

        With `most` 0 the result is 0 or None.
        """
        for steps in range(most, min(most, 1) - 1, -1):
            if self.seconds(images, steps) <= seconds:
                return steps
        return None


def _forwards(steps: int) -> int:
    return 2 * steps + 1
