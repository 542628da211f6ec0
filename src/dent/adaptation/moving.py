"""Running statistics that move while a model adapts, as in the paper's Listing 1.

A BatchNorm layer in train mode normalizes by its batch, and moves its running statistics toward
the batch statistics. In eval mode it then normalizes by the moved running statistics.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dent.adaptation.norm import Affine, fixed_batch_norm, norm_layers
from dent.adaptation.other_batch_norm import BatchNormCall, OtherBatchNorm
from dent.errors import UnsupportedModelError

MEAN, VARIANCE = "running_mean", "running_var"


def batch_norm_layers(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Yield the BatchNorm layers that keep running statistics, with their dotted names."""
    for name, layer in norm_layers(model):
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            yield name, layer


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the running statistics of a model by dotted name, each (C,)."""
    return {
        f"{name}.{attribute}": getattr(layer, attribute)
        for name, layer in batch_norm_layers(model)
        for attribute in (MEAN, VARIANCE)
    }


class MovingStatistics:
    """Switch for the statistics by which the BatchNorm layers of a private copy normalize.

    They normalize by the running statistics that `give` sets, or by the batch's.

    Args:
        layers: the layers by dotted name. Their forward is replaced.
    """

    def __init__(self, layers: Iterable[tuple[str, _BatchNorm]]) -> None:
        self._layers = dict(layers)
        self._given: Mapping[str, Tensor] | None = None
        self._seen: defaultdict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._records = False
        for name, layer in self._layers.items():
            vars(layer)["forward"] = partial(self._forward, name, layer)

    def give(self, statistics: Mapping[str, Tensor] | None) -> None:
        """Set the running statistics by which the next forward normalizes; None: the batch's."""
        self._given = statistics
        self._seen.clear()
        self._records = True

    def end(self) -> None:
        """End the forward: layers that run again, in a backward pass, are not recorded."""
        self._records = False

    def moved(self, statistics: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """Return running statistics after the last forward, which normalized by the batch.

        Args:
            statistics: the running statistics before that forward, by dotted name.
            step: number of this adaptation step, from 1.
        """
        moved = dict(statistics)
        for name, layer in self._layers.items():
            for seen in self._seen[name]:
                share = layer.momentum
                if share is None:  # the mean over all batches so far
                    share = 1 / (int(layer.num_batches_tracked or 0) + step)
                for attribute, value in zip((MEAN, VARIANCE), seen, strict=True):
                    key = f"{name}.{attribute}"
                    moved[key] = (1 - share) * moved[key] + share * value.to(moved[key].dtype)
        return moved

    def _forward(self, name: str, layer: _BatchNorm, *args: Any, **keywords: Any) -> Any:
        # The layer's own forward may do more than normalize: timm's BatchNormAct2d also activates.
        with OtherBatchNorm(partial(self._normalize, name, layer)) as other:
            output = type(layer).forward(layer, *args, **keywords)
        if not other.asked:
            raise UnsupportedModelError(
                f"The layer {name} ({type(layer).__name__}) does not call "
                "torch.nn.functional.batch_norm, so its statistics cannot move. Call that in its "
                "forward, or choose statistics='train' or 'test'."
            )
        return output

    def _normalize(self, name: str, layer: _BatchNorm, call: BatchNormCall) -> Tensor:
        x, weight, bias, eps = call.input, call.weight, call.bias, call.eps
        if self._given is not None:
            mean, variance = (
                self._given.get(f"{name}.{attribute}", getattr(layer, attribute))
                for attribute in (MEAN, VARIANCE)
            )
            return fixed_batch_norm(x, mean, variance, _rows(weight), _rows(bias), eps)
        over = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = torch.var_mean(x, over, correction=1)  # unbiased, as torch keeps it
        if self._records:
            self._seen[name].append((mean, variance))
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)


def _rows(value: Any) -> Affine | None:
    return value if value is None or isinstance(value, Affine) else Affine(value.unsqueeze(0))
