"""Find which sample each row of a normalization layer's input belongs to.

Some models fold tokens or windows into the batch: LeViT, MobileViT, TinyViT, TNT. Their layers get
k rows of each of N samples. The shape does not tell in which order, so a few forwards find it out:
NaN in a sample's input reaches every row that depends on the sample. Half of the samples are NaN in
each forward, so that the forwards spell every row's sample in binary. A row that is NaN for both
halves depends on several samples, and a row that is NaN for neither depends on none.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch

from dent.adaptation.norm import Affine, Order
from dent.errors import UnsupportedModelError
from dent.support.plural import counted

Orders = dict[str, dict[int, Order]]
"""For each layer, by dotted name, the order of an input's rows, by their number."""

_REMEMBERED = 1000
"""Largest number of batch shapes whose orders are remembered."""


class _Input(NamedTuple):
    """An input of a layer: the layer's dotted name, and which rows, (R,), are NaN."""

    layer: str
    is_nan: Tensor


@dataclass
class RowOrders:
    """The orders of rows that were found for a model, by the shape of the batch.

    They hold for one shape only, so every other shape, such as a smaller last batch, is probed
    anew. Copies of a defense share them.
    """

    _found: dict[tuple[int, ...], Orders] = field(default_factory=dict)

    def affine(self, layer: str, value: Tensor, shape: tuple[int, ...]) -> Affine:
        """Return a scale or shift that knows the orders for a batch of a shape.

        Args:
            layer: the dotted name of the layer.
            value: see `Affine`.
            shape: that of the batch.
        """
        return Affine(value, self._found.get(shape, {}).get(layer))

    def knows(self, shape: tuple[int, ...]) -> bool:
        """Return whether batches of a shape were probed."""
        return shape in self._found

    @property
    def needed(self) -> bool:
        """Whether batches of any shape were probed, because a layer's rows were not the samples."""
        return bool(self._found)

    def find(self, x: Tensor, run: Callable[[Tensor, "RowOrders"], object]) -> None:
        """Find the orders for batches of the shape of `x`.

        Args:
            x: (N, ...), finite.
            run: runs a fresh copy of the model on a batch, with one scale and shift for all
                samples from the given object. Its normalizations must not depend on the batch.

        Raises:
            UnsupportedModelError: an input has N rows, but not in the order of the samples.
        """
        halves = []
        for bit in range((len(x) - 1).bit_length()):
            chosen = (torch.arange(len(x), device=x.device) >> bit) & 1 == 1
            halves.append((_inputs(x, chosen, run), _inputs(x, ~chosen, run)))
        if len(self._found) >= _REMEMBERED:
            self._found.clear()
        self._found[tuple(x.shape)] = _orders(halves, len(x))


class _Watching(RowOrders):
    """Notes the inputs of all layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[_Input] = []

    def affine(self, layer: str, value: Tensor, shape: tuple[int, ...]) -> Affine:
        """Return a scale or shift that notes each input that it meets."""
        return _WatchingAffine(value, layer, self.inputs)


class _WatchingAffine(Affine):
    def __init__(self, value: Tensor, layer: str, inputs: list[_Input]) -> None:
        super().__init__(value)
        self._layer = layer
        self._inputs = inputs

    def with_value(self, value: Tensor) -> Affine:
        return _WatchingAffine(value, self._layer, self._inputs)

    def rows_for(self, x: Tensor) -> Tensor:
        if _functorch.is_batchedtensor(x):  # its values must not leave torch.vmap
            raise UnsupportedModelError(f"torch.vmap calls {self._layer}.")
        self._inputs.append(_Input(self._layer, x.detach().flatten(1).isnan().any(1)))
        return super().rows_for(x)


def _inputs(x: Tensor, chosen: Tensor, run: Callable[[Tensor, RowOrders], object]) -> list[_Input]:
    """Return the inputs of all layers, in order, when the chosen samples, (N,), are NaN."""
    marked = x.detach().clone()
    marked[chosen] = torch.nan
    watching = _Watching()
    try:
        run(marked, watching)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the model refuses NaN, so there are no orders
        return []
    return watching.inputs


def _orders(halves: list[tuple[list[_Input], list[_Input]]], samples: int) -> Orders:
    """Return the orders that every input of a layer agrees with.

    Args:
        halves: for each bit of a sample's number, the inputs when the samples with that bit are
            NaN, and when all others are.
        samples: the number of samples.

    Raises:
        UnsupportedModelError: see `RowOrders.find`.
    """
    runs = [run for half in halves for run in half]
    kinds = [[(seen.layer, len(seen.is_nan)) for seen in run] for run in runs]
    if not runs or any(kind != kinds[0] for kind in kinds):
        return {}
    found: dict[tuple[str, int], set[Order | None]] = {}
    for index, (layer, rows) in enumerate(kinds[0]):
        pairs = [(ones[index].is_nan, zeros[index].is_nan) for ones, zeros in halves]
        order = _order(pairs, rows, samples, layer)
        found.setdefault((layer, rows), set()).add(order)
    orders: Orders = {}
    for (layer, rows), candidates in found.items():
        if len(candidates) == 1 and (order := candidates.pop()) is not None:
            orders.setdefault(layer, {})[rows] = order
    return orders


def _order(pairs: list[tuple[Tensor, Tensor]], rows: int, samples: int, layer: str) -> Order | None:
    """Return the order of an input's rows; None if it has none.

    Args:
        pairs: for each bit of a sample's number, which rows, (R,), are NaN in the two forwards.
        rows: R.
        samples: the number of samples.
        layer: the name of the layer, for the error.

    Raises:
        UnsupportedModelError: see `RowOrders.find`.
    """
    of_one = torch.stack([ones ^ zeros for ones, zeros in pairs]).all(0)
    sample: Any = sum(ones.long() << bit for bit, (ones, _) in enumerate(pairs))
    row = torch.arange(rows, device=of_one.device)
    if rows == samples:
        if bool((of_one & (sample != row)).any()):
            raise UnsupportedModelError(
                f"The layer {layer} got an input of {counted(rows, 'row')}, which are not the "
                "samples in their order. Sample-wise adaptation needs the batch as the first "
                "dimension there; or adapt batch-wise."
            )
        return None
    if rows % samples or not bool(of_one.all()):
        return None
    if torch.equal(sample, row // (rows // samples)):
        return "sample-major"
    return "sample-minor" if torch.equal(sample, row % samples) else None
