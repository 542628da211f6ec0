"""Images as PNG data URIs, and what is drawn of a perturbation and of a smoothed input."""

import base64
from typing import Any

import torch
from torch import Tensor
from torchvision.io import encode_png

from dent import smoothing
from dent.config import Covariance

CHANNELS = (1, 3)
"""Numbers of channels that a PNG is made of here."""


def data_uri(image: Tensor) -> str:
    """Encode an image as `data:image/png;base64,...`; the same bytes for the same pixels.

    Args:
        image: (C, H, W) in [0, 1], C one of `CHANNELS`; what lies outside is clipped, and what is
            not a number is black.
    """
    plain = image.detach().cpu().float().nan_to_num(nan=0.0).clamp(0, 1)
    encoded = encode_png(plain.mul(255).round().to(torch.uint8).contiguous())
    return "data:image/png;base64," + base64.b64encode(encoded.numpy().tobytes()).decode("ascii")


def enlarged(adversarial: Tensor, natural: Tensor) -> tuple[Tensor, float]:
    """Draw a perturbation around mid-gray, so that its largest value reaches black or white.

    Args:
        adversarial: (C, H, W).
        natural: The same shape.

    Returns:
        The picture, in [0, 1], and by how much it is enlarged: 0 where nothing was perturbed.
    """
    delta = (adversarial - natural).nan_to_num(nan=0.0)
    largest = float(delta.abs().max())
    if largest == 0:
        return torch.full_like(natural, 0.5), 0.0
    factor = 0.5 / largest
    return 0.5 + factor * delta, factor


def smoothed(image: Tensor, sigma: tuple[float, ...], kind: Covariance) -> Tensor:
    """Smooth an image as a defense did, by the sigma on record.

    Args:
        image: (C, H, W).
        sigma: In pixels, one value, or one along each of (vertical, horizontal).
        kind: The covariance's kind. Of a full covariance the records hold the extent along the
            axes alone, so it is drawn as a diagonal one.
    """
    axes: Covariance = "spherical" if len(sigma) == 1 else "diagonal"
    if kind != "spherical" and axes == "spherical":
        sigma, axes = (sigma[0], sigma[0]), "diagonal"
    parameter = torch.tensor(sigma, dtype=image.dtype).clamp(min=1e-6).log()
    return smoothing.smooth(image.unsqueeze(0), parameter, axes)[0]


def smoothing_of(settings: Any) -> dict[str, Any] | None:
    """The smoothing in a defense's recorded settings; None where it does not smooth."""
    found = settings.get("smoothing") if isinstance(settings, dict) else None
    return found if isinstance(found, dict) else None
