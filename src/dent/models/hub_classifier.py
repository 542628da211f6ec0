"""Wrap a classifier of transformers so that it takes pixels in [0, 1] and returns logits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dent.errors import UnsupportedModelError
from dent.models.normalize import Normalize

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIDE: Final = 1031  # side of the test images: no model has this size, and no crop pads them
_FLAT: Final = 1e-4
_BILINEAR: Final = 2  # Pillow's constants
_BICUBIC: Final = 3
_TOLERANCE: Final = 0.02
_CROPPED_BELOW: Final = 384  # ConvNeXt's rule for `crop_pct`


@dataclass(frozen=True)
class Preparation:
    """The preprocessing that a repository's image processor applies before its model.

    Attributes:
        mean: One mean per channel, of pixels in [0, 1], red first.
        std: One standard deviation per channel.
        order: The image channel that becomes the model's first, second and third: `(2, 1, 0)` for
            blue first.
        size: Height and width that every image is resized to; None if images keep their size.
        bicubic: Whether the interpolation is bicubic; otherwise it is bilinear.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: tuple[int, ...]
    size: tuple[int, int] | None
    bicubic: bool


class HubClassifier(nn.Module):
    """A model of transformers that first applies its image processor's steps, without rounding.

    Args:
        model: An image classifier whose output has `logits`.
        preparation: The preprocessing of its images.
        classes: The names of its classes, in the order of the logits; None if unknown.
    """

    def __init__(
        self, model: nn.Module, preparation: Preparation, classes: tuple[str, ...] | None
    ) -> None:
        super().__init__()
        self.classes = classes
        self.preparation = preparation
        self.normalize = Normalize(preparation.mean, preparation.std)
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) for images (N, 3, H, W) in [0, 1].

        Images of a size other than the model's are resized first, with an exact gradient.
        """
        size = self.preparation.size
        if size is not None and x.ndim == 4 and tuple(x.shape[-2:]) != size:
            mode = "bicubic" if self.preparation.bicubic else "bilinear"
            # Bicubic interpolation overshoots; a processor clips that when it rounds to bytes.
            x = F.interpolate(x, size, mode=mode, antialias=True).clamp(0, 1)
        x = self.normalize(x)
        if self.preparation.order != (0, 1, 2):
            x = x[:, list(self.preparation.order)]
        logits: Tensor = self.model(pixel_values=x).logits
        return logits


def measured(processor: Any, where: str) -> Preparation:
    """Determine an image processor's preprocessing from its outputs for images of one color.

    Each class of processor has its own settings for scaling, normalization and the order of
    channels. Its outputs show them in the same way for all classes.

    Args:
        processor: An image processor of transformers.
        where: The source of the processor, for messages.

    Raises:
        UnsupportedModelError: The processor fails, or does more than resize, crop, normalize and
            reorder channels.
    """
    outputs = torch.stack([_colored(processor, color, where) for color in range(4)])
    flat = outputs.mean((-2, -1))
    if float((outputs - flat[..., None, None]).abs().max()) > _FLAT * float(flat.abs().max()):
        raise _unsupported(where, "makes an image of one color one of several")
    black, gains = flat[0], (flat[1:] - flat[0]).T  # gains: (model's channel, image's channel)
    order = gains.abs().argmax(1)
    expected = torch.zeros_like(gains)
    expected[range(3), order] = gains[range(3), order]
    if order.unique().numel() != 3 or not torch.allclose(gains, expected, atol=1e-4):
        raise _unsupported(where, "mixes colors")
    scale = gains[range(3), order]
    if not bool((scale > 0).all()):
        raise _unsupported(where, "inverts or drops a color")
    std, mean = torch.empty_like(scale), torch.empty_like(scale)
    std[order], mean[order] = 1 / scale, -black / scale
    height, width = outputs.shape[-2:]
    return Preparation(
        mean=_stated(processor, "image_mean", mean),
        std=_stated(processor, "image_std", std),
        order=tuple(order.tolist()),
        size=None if (height, width) == (_SIDE, _SIDE) else (height, width),
        bicubic=_is_bicubic(processor),
    )


def preprocessing(processor: Any, preparation: Preparation) -> str:
    """Return the resize and crop to the model's size, as `dent.data` writes it.

    Args:
        processor: An image processor of transformers.
        preparation: What `measured` returned for it.

    Returns:
        Such as `r256-c224-bicubic`; "" if `dent.data` cannot write what the processor does.
    """
    size = preparation.size
    known = getattr(processor, "resample", None) in (_BILINEAR, _BICUBIC)
    if size is None or size[0] != size[1] or not known:
        return ""
    side, resize = size[0], _resize(processor, size[0])
    kept = 1.0 if resize is None else side / resize
    if abs(_kept(processor, preparation) - kept) > _TOLERANCE:
        return ""
    written = f"s{side}" if resize is None else f"r{resize}-c{side}"
    return written + ("-bicubic" if preparation.bicubic else "")


def _resize(processor: Any, side: int) -> int | None:
    """Return the length that a processor's settings give the shorter side; None for a squash."""
    shortest, part = _shortest(processor), getattr(processor, "crop_pct", None)
    if shortest is None or part is None:
        return shortest
    return int(shortest / part) if side < _CROPPED_BELOW else None


def _kept(processor: Any, preparation: Preparation) -> float:
    """Return the part of an image's width that a processor keeps, from its output for a ramp."""
    ramp = np.zeros((_SIDE, _SIDE, 3), np.uint8)
    ramp[:] = np.linspace(0, 255, _SIDE).round()[:, None]
    red = _processed(processor, ramp, "the image processor")[preparation.order.index(0)]
    return float(red.max() - red.min()) * preparation.std[0]


def _colored(processor: Any, color: int, where: str) -> Tensor:
    """Return a processor's output (3, H, W) for a black, red, green or blue image."""
    image = np.zeros((_SIDE, _SIDE, 3), np.uint8)
    if color:
        image[..., color - 1] = 255
    return _processed(processor, image, where)


def _processed(processor: Any, image: NDArray[np.uint8], where: str) -> Tensor:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output: Tensor = processor(images=image, return_tensors="pt")["pixel_values"]
    except Exception as error:  # transformers may raise anything on unknown settings
        reason = f"{type(error).__name__}: {error}"
        raise _unsupported(
            where, f"fails on an image of {_SIDE} x {_SIDE} pixels ({reason})"
        ) from (error)
    if output.ndim != 4 or output.shape[:2] != (1, 3):
        raise _unsupported(where, f"makes an image one of shape {tuple(output.shape)}")
    return output[0].double()


def _stated(processor: Any, name: str, found: Tensor) -> tuple[float, ...]:
    """Return the processor's own value if it agrees with `found`, which float32 has rounded."""
    stated = getattr(processor, name, None)
    if (
        isinstance(stated, Sequence)
        and len(stated) == 3
        and torch.allclose(found.new_tensor(stated), found, atol=1e-5, rtol=1e-4)
    ):
        return tuple(map(float, stated))
    return tuple(round(value, 6) for value in found.tolist())


def _is_bicubic(processor: Any) -> bool:
    return getattr(processor, "resample", None) == _BICUBIC


def _shortest(processor: Any) -> int | None:
    size = getattr(processor, "size", None)
    try:
        shortest = size["shortest_edge"]  # type: ignore[index]
    except (KeyError, TypeError, AttributeError):
        return None
    return None if shortest is None else int(shortest)


def _unsupported(where: str, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{where}: its image processor {what}, expected one that resizes, crops and normalizes. "
        "What to do: build the model in a function of your own, package.module:factory"
    )
