"""One value for each sample of a batch."""

from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Return `values`, (N,), as (N, 1, ...), so that it broadcasts over `like`, (N, ...)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))
