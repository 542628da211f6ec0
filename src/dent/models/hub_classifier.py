"""Wrap a classifier of transformers so that it takes pixels in [0, 1] and returns logits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
_PROBES: Final = ((61, 97), (97, 61))  # sizes of images that show how a processor resizes
_ROUNDED: Final = 3 / 255  # a processor rounds to bytes once or twice


@dataclass(frozen=True)
class Preparation:
    """The preprocessing that a repository's image processor applies before its model.

    Attributes:
        mean: One mean per channel, of pixels in [0, 1], red first.
        std: One standard deviation per channel.
        order: The image channel that becomes the model's first, second and third: `(2, 1, 0)` for
            blue first.
        size: Height and width of the model's images; None if images keep their size.
        resize: What an image of another size is resized to before its center is cropped to `size`:
            the length of its shorter side, or height and width. None if the processor does
            something else, so that such images are refused.
        bicubic: Whether the interpolation is bicubic; otherwise it is bilinear.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: tuple[int, ...]
    size: tuple[int, int] | None
    resize: int | tuple[int, int] | None
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

        Images of a size other than the model's are first resized and cropped as by the image
        processor, with an exact gradient.

        Raises:
            UnsupportedModelError: Images have another size, and the image processor resizes in a
                way that this class cannot compute.
        """
        size = self.preparation.size
        if size is not None and x.ndim == 4 and tuple(x.shape[-2:]) != size:
            x = _fitted(x, self.preparation)
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
    found = Preparation(
        mean=_stated(processor, "image_mean", mean),
        std=_stated(processor, "image_std", std),
        order=tuple(order.tolist()),
        size=None if (height, width) == (_SIDE, _SIDE) else (height, width),
        resize=None,
        bicubic=getattr(processor, "resample", None) == _BICUBIC,
    )
    return replace(found, resize=_resize(processor, found, where))


def preprocessing(preparation: Preparation) -> str:
    """Return the resize and crop to the model's size, as `dent.data` writes it.

    Returns:
        Such as `r256-c224-bicubic`; "" if `dent.data` cannot write what the processor does.
    """
    size, resize = preparation.size, preparation.resize
    if size is None or size[0] != size[1] or not (resize == size or isinstance(resize, int)):
        return ""
    written = f"s{size[0]}" if resize == size else f"r{resize}-c{size[0]}"
    return written + ("-bicubic" if preparation.bicubic else "")


def _fitted(x: Tensor, preparation: Preparation) -> Tensor:
    """Return images (N, 3, H, W) resized and cropped to the model's size."""
    size, resize = preparation.size, preparation.resize
    height, width = x.shape[-2:]
    if size is None or resize is None:
        expected = " x ".join(map(str, size or ()))
        raise UnsupportedModelError(
            f"expected images of {expected} pixels, got {height} x {width}: the model's image "
            "processor resizes in another way than bilinear or bicubic interpolation and a center "
            f"crop. What to do: take a dataset of {expected} pixels (--dataset), or build the "
            "model in a function of your own, package.module:factory"
        )
    if isinstance(resize, int):
        short = min(height, width)
        resize = (int(resize * height / short), int(resize * width / short))
    x = _interpolated(x, resize, bicubic=preparation.bicubic)
    top, left = (resize[0] - size[0]) // 2, (resize[1] - size[1]) // 2
    return x[..., top : top + size[0], left : left + size[1]]


def _interpolated(x: Tensor, size: tuple[int, int], *, bicubic: bool) -> Tensor:
    """Return images resized with an exact gradient, but otherwise as on bytes."""
    if not bicubic:
        return F.interpolate(x, size, mode="bilinear", antialias=True).clamp(0, 1)
    # Bicubic interpolation overshoots; rounding to bytes clips that after each direction.
    for step in ((x.shape[-2], size[1]), size):
        x = F.interpolate(x, step, mode="bicubic", antialias=True).clamp(0, 1)
    return x


def _resize(processor: Any, preparation: Preparation, where: str) -> int | tuple[int, int] | None:
    """Return `Preparation.resize`, by which images come out as from the processor; else None."""
    resample = getattr(processor, "resample", None)
    if preparation.size is None or resample not in (None, _BILINEAR, _BICUBIC):
        return None
    probes = [_noise(*shape) for shape in _PROBES]
    expected = [_processed(processor, probe, where) for probe in probes]
    for candidate in _candidates(processor, preparation.size):
        tried = replace(preparation, resize=candidate)
        if all(_agree(tried, *pair) for pair in zip(probes, expected, strict=True)):
            return candidate
    return None


def _candidates(processor: Any, size: tuple[int, int]) -> Iterator[int | tuple[int, int]]:
    """Yield what a processor's settings may mean for `Preparation.resize`; none below `size`."""
    yield size
    stated = getattr(processor, "size", None)
    shortest, part = _entry(stated, "shortest_edge"), getattr(processor, "crop_pct", None)
    if shortest is not None:
        lengths = (shortest, int(shortest / part) if part else 0)
        yield from (length for length in lengths if length >= max(size))
    height, width = _entry(stated, "height"), _entry(stated, "width")
    if height is not None and width is not None and height >= size[0] and width >= size[1]:
        yield height, width


def _agree(preparation: Preparation, image: NDArray[np.uint8], expected: Tensor) -> bool:
    """Return whether a preparation gives the same image as the processor."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255
    order = list(preparation.order)
    std, mean = (torch.tensor(v).double()[order, None, None] for v in (
        preparation.std, preparation.mean))  # fmt: skip
    ours, theirs = _fitted(x, preparation)[0, order], expected * std + mean
    return ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= _ROUNDED


def _noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


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


def _entry(size: Any, key: str) -> int | None:
    try:
        value = size[key]
    except (KeyError, TypeError, AttributeError):
        return None
    return None if value is None else int(value)


def _unsupported(where: str, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{where}: its image processor {what}, expected one that resizes, crops and normalizes. "
        "What to do: build the model in a function of your own, package.module:factory"
    )
