"""The values that a step may change, each kind as one flat tensor for all layers."""

from collections.abc import Iterable, Mapping
from typing import Final

import torch
from torch import Tensor

Values = dict[str, Tensor]
"""The values that a step may change, by name: each (D,) batch-wise or (N, D) sample-wise."""

AFFINE: Final = "affine"
SMOOTHING: Final = "smoothing"
STATISTICS: Final = "statistics"
"""Name of the running statistics, (D,): each step moves them, but they are not learned, and the
batch shares them."""


def flatten(trained: Mapping[str, Tensor]) -> Tensor:
    """Return all parameters as one vector, (D,), so that one update serves all layers.

    It has at least float32: in bfloat16, a step of 1e-3 on a scale near 1 would be rounded away.
    """
    return joined(tensor.detach() for tensor in trained.values())


def joined(tensors: Iterable[Tensor]) -> Tensor:
    """Return tensors of any shapes as one vector, (D,), in at least float32."""
    first, *others = tensors
    dtype = torch.promote_types(torch.float32, first.dtype)
    for tensor in others:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.cat([tensor.to(first.device, dtype).flatten() for tensor in (first, *others)])


def unflatten(flat: Tensor | None, trained: Mapping[str, Tensor]) -> Values:
    """Split a flat (..., D) into views by dotted name, each (..., *shape of the parameter)."""
    if flat is None:
        return {}
    # One split, not slices: the gradient of a slice is as large as the whole.
    pieces = flat.split([tensor.numel() for tensor in trained.values()], dim=-1)
    return {
        name: piece.reshape((*flat.shape[:-1], *tensor.shape))
        for (name, tensor), piece in zip(trained.items(), pieces, strict=True)
    }
