"""The certificate of the exact gradient, asked for wherever an attack follows it."""

import math
from typing import Final

from torch import Tensor

from dent.attacks import Defense, Queries
from dent.attacks.adaptive import Unavailable, certificate
from dent.evaluation.records import GradientCheck
from dent.evaluation.serving import reset

MEMBERS: Final = 4
"""Few, so that few ReLUs flip within a finite difference."""
_PASSES: Final = Queries(72, 1)
"""Six step lengths along six directions, two answers each."""
_DOUBLE: Final = 2
"""An answer in float64, in answers in float32."""


def passes(members: int, size: int) -> Queries:
    """What it asks at most, in passes of a batch of `size`, of which it has `members`."""
    share = _DOUBLE * min(members, MEMBERS) / size
    return Queries(*(math.ceil(share * each) for each in _PASSES))


def certify(defense: Defense, x: Tensor, y: Tensor, seed: int) -> GradientCheck:
    """Compare the unrolled gradient with finite differences of what is served.

    Args:
        defense: Forgets before and after, where it can.
        x: Members of the first batch, (N, C, H, W); at most the first few are looked at.
        y: Their labels.
        seed: Of the directions.
    """
    x, y = x[:MEMBERS], y[:MEMBERS]
    reset(defense)
    try:
        found = certificate(defense, x, y, seed=seed)
    except Unavailable as missing:
        return GradientCheck(members=len(x), missing=str(missing))
    finally:
        reset(defense)
    finite = math.isfinite(found.relative_error)
    return GradientCheck(
        members=len(x),
        relative_error=found.relative_error if finite else None,
        threshold=found.threshold,
        dtype=found.dtype,
    )
