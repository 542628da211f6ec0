"""PNG data URIs of images, perturbations and smoothed inputs."""

import base64
import struct
import zlib
from typing import Any, Final, get_args

import torch
from torch import Tensor

from dent.adaptation import smoothing
from dent.config import Covariance

CHANNELS: Final = (1, 3)
"""Numbers of channels that an image may have."""
_COLOR_TYPES: Final = {1: 0, 3: 2}
_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


def data_uri(image: Tensor) -> str:
    """Encode an image as `data:image/png;base64,...`. The same pixels give the same bytes.

    Args:
        image: (C, H, W) in [0, 1], with C in `CHANNELS`. Values outside are clipped, and NaN
            becomes black.
    """
    plain = image.detach().cpu().float().nan_to_num(nan=0.0).clamp(0, 1)
    encoded = _png(plain.mul(255).round().to(torch.uint8))
    return "data:image/png;base64," + base64.b64encode(encoded).decode("ascii")


def enlarged(adversarial: Tensor, natural: Tensor) -> tuple[Tensor, float]:
    """Draw a perturbation around mid-gray, scaled to full contrast.

    Args:
        adversarial: (C, H, W).
        natural: The same shape.

    Returns:
        The picture, in [0, 1], and the factor by which the perturbation was scaled; 0 if there is
        no perturbation.
    """
    delta = (adversarial - natural).nan_to_num(nan=0.0)
    largest = float(delta.abs().max())
    if largest == 0:
        return torch.full_like(natural, 0.5), 0.0
    factor = 0.5 / largest
    return 0.5 + factor * delta, factor


def smoothed(image: Tensor, sigma: tuple[float, ...], kind: Covariance) -> Tensor:
    """Smooth an image with the recorded sigma of a defense.

    Args:
        image: (C, H, W).
        sigma: In pixels: one value, or one for each axis (vertical, horizontal).
        kind: Kind of the covariance. For a full covariance, the records hold only sigma along the
            axes, so it is drawn as a diagonal one.
    """
    axes: Covariance = "spherical" if len(sigma) == 1 else "diagonal"
    if kind != "spherical" and axes == "spherical":
        sigma, axes = (sigma[0], sigma[0]), "diagonal"
    parameter = torch.tensor(sigma, dtype=image.dtype).clamp(min=1e-6).log()
    return smoothing.smooth(image.unsqueeze(0), parameter, axes)[0]


def smoothing_of(settings: Any) -> dict[str, Any] | None:
    """Return the smoothing in a defense's recorded settings; None if it is absent or unknown."""
    found = settings.get("smoothing") if isinstance(settings, dict) else None
    known = isinstance(found, dict) and found.get("covariance") in get_args(Covariance)
    return found if known else None


def _png(pixels: Tensor) -> bytes:
    """Encode uint8 (C, H, W) with 8 bits per channel, no filter and no interlacing."""
    channels, height, width = pixels.shape
    rows = pixels.permute(1, 2, 0).reshape(height, width * channels)
    unfiltered = torch.cat([rows.new_zeros(height, 1), rows], dim=1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    content = zlib.compress(unfiltered.numpy().tobytes(), 9)
    parts = ((b"IHDR", header), (b"IDAT", content), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
