"""The order of images and weights in memory: as given, or channels-last where that is faster."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any, Final
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dent.adaptation.autocast import autocast_for
from dent.adaptation.private_copy import private_copy
from dent.errors import ConfigError
from dent.performance import Performance

_NARROW = 16
"""Median output channels below which a model's convolutions are no faster channels-last."""
_WEIGHTS_A_PIXEL = 3000
"""Convolution weights per pixel of a batch, above which reordering the weights costs more than
channels-last saves. Both limits are measured (docs/speed.md)."""

FEW_ROWS = 8
"""Samples on which the memory formats are compared; all if the model cannot take so few."""
_REFUSED_CHANNELS_LAST: WeakSet[nn.Module] = WeakSet()
"""Models whose forward on channels-last images failed or returned other outputs."""
_CHECKED_CHANNELS_LAST: WeakSet[nn.Module] = WeakSet()
"""Models that returned the same outputs, up to rounding, in both memory formats."""


_MISREADING: Final = (F.batch_norm, F.instance_norm, torch.batch_norm, torch.instance_norm)


class MemoryFormatChoice:
    """The choice of a memory format for each batch of a model.

    Args:
        model: any supported module, not compiled; never written to.
        performance: determines which memory formats are allowed, and the precision.
    """

    def __init__(self, model: nn.Module, performance: Performance) -> None:
        self._model = model
        self._performance = performance
        self._pixels_for_channels_last = _pixels_for_channels_last(model)

    def channels_last(self, x: Tensor) -> bool:
        """Return whether a batch should lie channels-last in memory.

        Args:
            x: (N, ...), one batch.

        Raises:
            ConfigError: channels-last was requested, and the model's outputs depend on it.
        """
        return self._prefers_channels_last(x) and self._answers_alike(x)

    def refuse_channels_last(self) -> None:
        """Note that the model fails on channels-last images, so that no batch has this format."""
        _REFUSED_CHANNELS_LAST.add(self._model)

    def _prefers_channels_last(self, x: Tensor) -> bool:
        memory_format = self._performance.memory_format
        if x.dim() != 4 or memory_format != "auto":
            return x.dim() == 4 and memory_format == "channels-last"
        if len(x) == 1:  # on a CPU, `PlainNorms` would undo the format at every normalization
            return False
        pixels = x.numel() // x.shape[1]
        suits = x.device.type == "cpu" and pixels >= self._pixels_for_channels_last
        return suits and self._model not in _REFUSED_CHANNELS_LAST

    def _answers_alike(self, x: Tensor) -> bool:
        """Return whether channels-last changes only rounding; checked once per model.

        Also true if the model fails on `x`: its own forward pass then reports the error.

        Raises:
            ConfigError: it changes more, and the user requested channels-last.
        """
        if self._model in _CHECKED_CHANNELS_LAST:
            return True
        with autocast_for(self._performance, x):
            few = _alike(self._model, x[:FEW_ROWS].detach())
            alike = _alike(self._model, x.detach()) if few is None else few
        if alike:
            _CHECKED_CHANNELS_LAST.add(self._model)
        elif alike is not None:
            if self._performance.memory_format != "auto":
                raise ConfigError(
                    f"{type(self._model).__name__} gives other logits where images lie "
                    "channels-last in memory: it reads strides, or draws random numbers in the "
                    'order of memory. Use memory_format="preserve".'
                )
            _REFUSED_CHANNELS_LAST.add(self._model)
        return alike is not False


def _pixels_for_channels_last(model: nn.Module) -> float:
    """Return the pixels per batch above which channels-last is faster on a CPU."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if (
        not convolutions
        or median(convolution.out_channels for convolution in convolutions) < _NARROW
    ):
        return math.inf
    return sum(convolution.weight.numel() for convolution in convolutions) / _WEIGHTS_A_PIXEL


def reorder_weights(module: nn.Module) -> None:
    """Convert a private copy's convolution weights to channels-last, once for all forwards."""
    for layer in module.modules():
        weight = layer._parameters.get("weight")
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and weight is not None:
            layer._parameters["weight"] = weight.contiguous(memory_format=torch.channels_last)  # type: ignore[assignment]


@torch.no_grad()
def _alike(model: nn.Module, x: Tensor) -> bool | None:
    """Return whether both memory formats give the same output up to rounding.

    None if the model fails or returns no tensor.
    """
    answers = []
    for channels_last in (True, False):
        module = private_copy(model)
        if channels_last:
            reorder_weights(module)
        # The same random numbers for both; the caller restores the state.
        seed = torch.get_rng_state()
        try:
            answers.append(module(own_copy(x, channels_last=channels_last)))
        except (RuntimeError, ValueError, AssertionError, IndexError):
            return None  # the model's own forward pass reports this error
        finally:
            torch.set_rng_state(seed)
    if not all(isinstance(answer, Tensor) for answer in answers):
        return None
    ordered, plain = answers
    rounding = math.sqrt(torch.finfo(plain.dtype).eps) * float(plain.abs().nan_to_num().max())
    return torch.allclose(ordered, plain, rtol=0.0, atol=rounding, equal_nan=True)


class PlainNorms(TorchFunctionMode):
    """Context in which batch and instance normalization work in the default memory format.

    For one image, PyTorch's backward on a CPU misreads gradients that lie in another format,
    without an error. A model can make such gradients even of an image in the default format, by
    transposing.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and a normalization in the default memory format."""
        kwargs = kwargs or {}
        if func not in _MISREADING:
            return func(*args, **kwargs)
        if args:
            args = (args[0].contiguous(), *args[1:])
        else:
            kwargs = kwargs | {"input": kwargs["input"].contiguous()}
        output = func(*args, **kwargs)
        if output.requires_grad:
            output.register_hook(_contiguous)
        return output


def plain_norms(x: Tensor) -> AbstractContextManager[object]:
    """Return the context of `PlainNorms` for a batch that needs it, and an empty one for others."""
    return PlainNorms() if len(x) == 1 and x.device.type == "cpu" else nullcontext()


def own_copy(x: Tensor, *, channels_last: bool) -> Tensor:
    """Return a copy of `x`, in a memory format, that a model may write to in place."""
    if not channels_last:
        return x.clone()
    if x.requires_grad:
        # Return the gradient in the default memory format: attacks call its .view().
        x = x.view_as(x)
        x.register_hook(_contiguous)
    return x.clone(memory_format=torch.channels_last)


def _contiguous(gradient: Tensor | None) -> Tensor | None:
    # None if no output depends on x: PyTorch calls the hook anyway.
    return None if gradient is None else gradient.contiguous()
