"""How long a batch will take, from how long batches took."""

_WEIGHT = 0.3
_MARGIN = 1.25


class StepCost:
    """A running estimate of seconds by batch size and number of steps.

    A step costs two forwards, and the answer one more; per size of batch (by powers of two) one
    exponentially weighted average of the seconds per image and forward is kept. A size never seen
    is priced like the nearest that was: per image, small batches are the dearer ones.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def observe(self, images: int, steps: int, seconds: float) -> None:
        """Learn from a batch that took `seconds`."""
        unit = seconds / (images * _forwards(steps))
        size = images.bit_length()
        known = self._seconds.get(size)
        self._seconds[size] = unit if known is None else known + _WEIGHT * (unit - known)

    def seconds(self, images: int, steps: int) -> float:
        """Seconds that a batch will probably take, with a margin; 0 where nothing is known."""
        if not self._seconds:
            return 0.0
        size = images.bit_length()
        nearest = min(self._seconds, key=lambda known: (abs(known - size), known))
        return _MARGIN * self._seconds[nearest] * images * _forwards(steps)

    def steps_within(self, images: int, most: int, seconds: float) -> int | None:
        """How many steps, of `most`, fit into `seconds`; None where not even one does.

        With `most` 0 the answer is 0 or None.
        """
        for steps in range(most, min(most, 1) - 1, -1):
            if self.seconds(images, steps) <= seconds:
                return steps
        return None


def _forwards(steps: int) -> int:
    return 2 * steps + 1
