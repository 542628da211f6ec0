"""Decode the body of a request to a batch of images, or refuse it and say what is wrong.

No function here trusts its input. Sizes are checked before anything of that size is allocated.
`.npy` files are read without pickle. Only the header of an image file is read until its size is
known to fit.
"""

import base64
import binascii
import io
import json
from collections.abc import Sequence
from typing import Annotated, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.types import FailFast
from torch import Tensor

from dent.serving.errors import RefusedError, invalid, malformed, non_finite, too_large, unsupported
from dent.support.plural import counted

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""

JSON: Final = "application/json"
NPY: Final = "application/x-npy"
PICTURES: Final = {"image/png": "PNG", "image/jpeg": "JPEG"}
CONTENT_TYPES: Final = (JSON, NPY, *PICTURES)

_NPY_HEADER = 4096
_NPY_TYPES = ("uint8", "float16", "float32", "float64")
_MODES = ("RGB", "L", "P", "1")

# Validation stops at the first error: a million wrong pixels must not make a million messages.
_Row = Annotated[list[float], FailFast()]
_Channel = Annotated[list[_Row], FailFast()]
_Image = Annotated[list[_Channel], FailFast()]
_Images = Annotated[list[_Image], FailFast()]
_Files = Annotated[list[str], FailFast()]


class PredictRequest(BaseModel):
    """The body of a JSON request, which has exactly one of the two fields.

    Attributes:
        images: pixels (N, C, H, W) in [0, 1].
        encoded: base64 of one PNG or JPEG file for each image.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    images: _Images = Field(default_factory=list, description="Pixels (N, C, H, W) in [0, 1].")
    encoded: _Files = Field(
        default_factory=list, description="Base64 of one PNG or JPEG file for each image."
    )


def decode(content_type: str, body: bytes, shape: Shape, max_images: int) -> Tensor:
    """Return the images of a request.

    Args:
        content_type: one of `CONTENT_TYPES`; parameters such as a charset are ignored.
        body: the whole body, whose length is within the limit.
        shape: the shape of image that the model takes.
        max_images: largest number of images.

    Returns:
        Images (N, C, H, W), float32 in [0, 1], N at least 1.

    Raises:
        RefusedError: 400, the body is malformed; 413, there are too many images; 415, the content
            type is another one; 422, the images do not have that shape, are not finite, or are
            outside [0, 1].
    """
    kind = media_type(content_type)
    if kind == JSON:
        return _from_json(body, shape, max_images)
    if kind == NPY:
        return _checked(_from_npy(body, shape, max_images), shape, max_images)
    if kind in PICTURES:
        return _scaled([_from_picture(body, PICTURES[kind], shape, None)])
    raise unsupported(
        f"Content-Type must be one of {', '.join(CONTENT_TYPES)}, got {shown(content_type)}."
    )


def media_type(content_type: str) -> str:
    """Return a content type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def _from_json(body: bytes, shape: Shape, max_images: int) -> Tensor:
    _check_size(body, shape, max_images)
    try:
        request = PredictRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explained(error, shape) from None
    if bool(request.images) == bool(request.encoded):
        both = "both" if request.images else "none"
        raise invalid(
            "the JSON body must have at least one image, either in the field images or in the "
            f"field encoded, got images in {both}."
        )
    _check_count(len(request.images or request.encoded), max_images)
    if request.encoded:
        return _scaled(
            [_from_base64(text, shape, index) for index, text in enumerate(request.encoded)]
        )
    nested = request.images
    for index, image in enumerate(nested):
        _check_rectangle(image, shape, index)
    try:
        return _checked(np.array(nested, dtype=np.float64), shape, max_images)
    except OverflowError:  # an integer beyond the range of float64
        raise invalid("a pixel is beyond any float; expected values in [0, 1].") from None


def _check_size(body: bytes, shape: Shape, max_images: int) -> None:
    """Refuse a JSON body with more values or lists than the largest request.

    Parsed, a list takes thirty times the memory of its text, so this is checked before parsing.
    """
    channels, height, width = shape
    commas = max_images * channels * height * width  # one more than needed, between two fields
    lists = max_images * (1 + channels + channels * height) + 2  # with those of both fields
    if body.count(b",") > commas or body.count(b"[") > lists:
        raise too_large(
            "the JSON body has more numbers or lists than "
            f"{counted(max_images, 'image')} of shape {_by(shape)}, which this server takes."
        )


def _explained(error: ValidationError, shape: Shape) -> RefusedError:
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    location = ".".join(str(part) for part in problem["loc"])
    message = f"{location}: {problem['msg']}" if location else str(problem["msg"])
    if problem["type"] == "json_invalid":
        return malformed(f"the body is no JSON: {problem['msg']}.")
    index = next((part for part in problem["loc"] if isinstance(part, int)), None)
    if location.startswith("images"):
        message += f"; images must be numbers in lists (N, {_by(shape, ', ')})"
    return invalid(f"the JSON body is not as documented: {message}.", index)


def _check_rectangle(image: Sequence[Sequence[Sequence[float]]], shape: Shape, index: int) -> None:
    channels, height, width = shape
    fits = len(image) == channels and all(
        len(channel) == height and all(len(row) == width for row in channel) for channel in image
    )
    if not fits:
        raise invalid(f"image {index} is not of shape {_by(shape)}, which the model takes.", index)


def _from_base64(text: str, shape: Shape, index: int) -> NDArray[np.uint8]:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise malformed(f"image {index} is not base64: {error}.", index) from None
    kinds = {b"\x89PNG": "PNG", b"\xff\xd8": "JPEG"}
    kind = next((kinds[start] for start in kinds if content.startswith(start)), None)
    if kind is None:
        raise malformed(f"image {index} is neither a PNG nor a JPEG.", index)
    return _from_picture(content, kind, shape, index)


def _from_picture(content: bytes, kind: str, shape: Shape, index: int | None) -> NDArray[np.uint8]:
    """Decode one file to uint8 (C, H, W), if its header gives the right size and mode."""
    source = "the body" if index is None else f"image {index}"
    channels, height, width = shape
    if channels not in (1, 3):
        raise unsupported(f"the model takes {counted(channels, 'channel')}: send {NPY} or {JSON}.")
    try:
        with Image.open(io.BytesIO(content), formats=(kind,)) as image:
            if image.size != (width, height):
                raise invalid(
                    f"{source} is {image.size[0]}x{image.size[1]} pixels, the model takes "
                    f"{width}x{height} (width x height): resize it as the model was evaluated.",
                    index,
                )
            unlike = _unlike_a_frame(image)
            if unlike is not None:
                raise invalid(
                    f"{source} must be one 8-bit RGB or grayscale frame, got {unlike}.", index
                )
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    except RefusedError:
        raise
    except UnidentifiedImageError:  # its message is the name of a Python object
        raise malformed(f"{source} is not a {kind}.", index) from None
    except Exception as error:  # on a broken file Pillow's decoders may raise any exception
        raise malformed(f"{source} is a damaged {kind}: {shown(str(error))}.", index) from None
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _unlike_a_frame(image: Image.Image) -> str | None:
    """Return what an image is instead of one 8-bit frame without transparency, or None."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        return counted(frames, "frame")
    if "transparency" in image.info:
        return "one with transparency"
    return None if image.mode in _MODES else f"one of mode {image.mode}"


def _from_npy(body: bytes, shape: Shape, max_images: int) -> NDArray[Any]:
    """Read a `.npy` file of shape (N, C, H, W) or (C, H, W), uint8 or floats, without pickle."""
    stream = io.BytesIO(body)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(stream)
        dims, fortran, dtype = read_header[version](stream, max_header_size=_NPY_HEADER)
    except Exception:  # the header is Python source, parsed by Python itself
        raise malformed("the body is no .npy file of version 1.0 or 2.0.") from None
    if dtype.newbyteorder("=").name not in _NPY_TYPES:
        raise invalid(f"expected an array of {', '.join(_NPY_TYPES)}, got {shown(str(dtype))}.")
    if fortran:
        raise invalid("expected an array in C order: save numpy.ascontiguousarray(images).")
    dims = (1, *dims) if len(dims) == 3 else dims
    if len(dims) != 4 or dims[1:] != shape or dims[0] < 1:
        advice = ""
        if dims[1:] == (*shape[1:], shape[0]):
            advice = " with the channels last: send images.transpose(0, 3, 1, 2).copy()"
        raise invalid(f"expected an array (N, {_by(shape, ', ')}), got {shown(str(dims))}{advice}.")
    _check_count(dims[0], max_images)
    content = body[stream.tell() :]
    expected = dims[0] * int(np.prod(shape)) * dtype.itemsize
    if len(content) != expected:
        raise malformed(
            f"the .npy file has {counted(len(content), 'byte')} of pixels, not {expected}."
        )
    return np.frombuffer(content, dtype).reshape(dims)


def _checked(pixels: NDArray[Any], shape: Shape, max_images: int) -> Tensor:
    """Return pixels as float32 (N, C, H, W), every value finite and in [0, 1]; scale uint8."""
    _check_count(len(pixels), max_images)
    if pixels.dtype == np.uint8:
        return _scaled(pixels)
    rows = pixels.reshape(len(pixels), -1)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        index = int(np.argmin(finite))
        raise non_finite(f"image {index} contains NaN or infinity.", index)
    inside = ((rows >= 0) & (rows <= 1)).all(axis=1)
    if not inside.all():
        index = int(np.argmin(inside))
        low, high = rows[index].min(), rows[index].max()
        advice = "leave the normalization to the model" if low < 0 else "divide bytes by 255"
        raise invalid(
            f"image {index} has pixels from {low:g} to {high:g}, expected [0, 1]: {advice}.", index
        )
    return torch.from_numpy(pixels.astype(np.float32).reshape(len(pixels), *shape))


def _scaled(pixels: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> Tensor:
    # The same arithmetic as in `dent.data`, so an image file gives the same batch, bit for bit.
    return torch.from_numpy(np.array(pixels, dtype=np.uint8)).to(torch.float32).div_(255)


def _check_count(count: int, max_images: int) -> None:
    if count > max_images:
        raise too_large(
            f"{counted(count, 'image')} in one request; this server takes {max_images}."
        )


def _by(shape: Shape, between: str = " x ") -> str:
    return between.join(map(str, shape))


def shown(text: str) -> str:
    """Return text from the request, shortened and escaped so that it is safe in a message."""
    return json.dumps(text[:80])
