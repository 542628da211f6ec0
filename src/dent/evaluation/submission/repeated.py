"""How far a batch that is submitted again may differ from its record by rounding alone."""

import math
from typing import Final

TOLERATED: Final = 0.01
"""Share of members whose prediction may change on other hardware or software, because of near ties.
It limits the whole run, each unit (plus one member), every worst case, and every difference."""
CLOSE: Final = 1e-3
"""Tolerance, absolute and relative, of a loss, a share of eps and the numbers of a trace."""


def may_change(members: int) -> int:
    """Return how many of the predictions of a unit with so many members rounding may change."""
    return 1 + math.ceil(TOLERATED * members)


def close(first: float | None, second: float) -> bool:
    """Return whether two numbers are equal up to `CLOSE`; a missing one is not."""
    return first is not None and math.isclose(first, second, rel_tol=CLOSE, abs_tol=CLOSE)
