"""Input adaptation Σ: differentiable Gaussian smoothing whose filter grows and shrinks with sigma.

The parameter is unconstrained: any value is a valid covariance (paper section 3.2, after Shelhamer
et al. 2019). It holds the logarithms of the Cholesky factor's diagonal, and for a full covariance
its off-diagonal entry. As sigma falls toward 0, the filter becomes the identity.

Axes are ordered (vertical, horizontal); sigma is in pixels. A leading dimension, if present, is the
sample.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dent.config import Covariance, SmoothingConfig
from dent.errors import InputError

TRUNCATION = 3.0
"""Reach of the filter in standard deviations: 0.3% of a Gaussian's mass lies beyond it."""

_BOUND = math.log(1e4)
"""Bound of log sigma, so that exp cannot overflow: sigma is from 1e-4 to 1e4 pixels. At 1e-4 the
filter is exactly the identity."""


def initial(config: SmoothingConfig, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the initial parameter: (1,) spherical, (2,) diagonal, (3,) full."""
    # torch.tensor would copy from the CPU, which waits for a GPU.
    log_sigma = torch.full((), math.log(config.sigma), dtype=dtype, device=device)
    log_sigma = log_sigma.clamp(-_BOUND, _BOUND)
    if config.covariance == "spherical":
        return log_sigma.reshape(1)
    if config.covariance == "diagonal":
        return log_sigma.expand(2).clone()
    return torch.stack([log_sigma, log_sigma, torch.zeros_like(log_sigma)])


def sigma(parameter: Tensor, kind: Covariance) -> Tensor:
    """Return the standard deviations in pixels: (...,) spherical, else (..., 2) along each axis."""
    if kind == "spherical":
        return _exp(parameter[..., 0])
    if kind == "diagonal":
        return _exp(parameter)
    vertical, horizontal = _exp(parameter[..., 0]), _exp(parameter[..., 1])
    return torch.stack([vertical, torch.hypot(horizontal, parameter[..., 2])], dim=-1)


def covariance(parameter: Tensor, kind: Covariance) -> Tensor:
    """Return the covariance in square pixels, (..., 2, 2)."""
    if kind == "full":
        vertical, horizontal = _exp(parameter[..., 0]), _exp(parameter[..., 1])
        rows = [vertical, torch.zeros_like(vertical), parameter[..., 2], horizontal]
        factor = torch.stack(rows, dim=-1).reshape(*vertical.shape, 2, 2)
        return factor @ factor.mT
    scale = sigma(parameter, kind)
    axes = scale.unsqueeze(-1).expand(*scale.shape, 2) if kind == "spherical" else scale
    return torch.diag_embed(axes.square())


def radius(parameter: Tensor, kind: Covariance, side: int) -> Tensor:
    """Return how many pixels the filter reaches along each axis, (..., 2), at least 1.

    Args:
        parameter: as from `initial`, with or without a sample dimension.
        kind: the covariance's kind.
        side: the image's longer side, which limits the result: there is only padding beyond it.
    """
    scale = sigma(parameter.detach(), kind)
    axes = scale.unsqueeze(-1).expand(*scale.shape, 2) if kind == "spherical" else scale
    # Subtract a rounding error, so that three times a third of a pixel gives one.
    return (TRUNCATION * axes * (1 - 1e-5)).ceil().clamp(1, side).to(torch.int64)


def smooth(x: Tensor, parameter: Tensor, kind: Covariance) -> Tensor:
    """Smooth images, each by its own Gaussian or all by the same one.

    The border is replicated, so that a constant image stays constant. Each sample's filter ends at
    its own radius, so that no sample's result depends on another's sigma.

    Args:
        x: images (N, C, H, W).
        parameter: (K,) for all samples or (N, K), K as in `initial`.
        kind: the covariance's kind.

    Raises:
        InputError: x is not a batch of images.
    """
    if x.dim() != 4:
        raise InputError(
            f"Gaussian smoothing expected images of shape (N, C, H, W), got {tuple(x.shape)}. "
            "Pass images, or configure smoothing=None."
        )
    parameter = parameter.expand(x.shape[0], -1)
    reach = radius(parameter, kind, max(x.shape[-2:]))
    vertical, horizontal = reach.amax(0).tolist()  # the only wait for a GPU
    padded = F.pad(x, (horizontal, horizontal, vertical, vertical), mode="replicate")
    if kind == "full":
        return _filter(padded, _kernel_full(parameter, reach, vertical, horizontal))
    scales = parameter.expand(-1, 2)
    columns = _kernel_axis(scales[:, 0], reach[:, 0], vertical).unsqueeze(2)
    rows = _kernel_axis(scales[:, 1], reach[:, 1], horizontal).unsqueeze(1)
    return _filter(_filter(padded, columns), rows)


def _exp(log_sigma: Tensor) -> Tensor:
    # Clamp before exp: a clamp after it would multiply a gradient of 0 by infinity.
    return log_sigma.clamp(-_BOUND, _BOUND).exp()


def _offsets(size: int, like: Tensor) -> Tensor:
    return torch.arange(-size, size + 1, dtype=like.dtype, device=like.device)


def _kernel_axis(log_sigma: Tensor, reach: Tensor, size: int) -> Tensor:
    """Return (N, 2 * size + 1) normalized weights."""
    offsets = _offsets(size, log_sigma)
    steepness = _exp(-log_sigma)
    weights = (-0.5 * (offsets * steepness.unsqueeze(1)).square()).exp()
    weights = weights * (offsets.abs() <= reach.unsqueeze(1))
    return weights / weights.sum(1, keepdim=True)


def _kernel_full(parameter: Tensor, reach: Tensor, vertical: int, horizontal: int) -> Tensor:
    """Return (N, 2 * vertical + 1, 2 * horizontal + 1) normalized weights."""
    steep = _exp(-parameter[:, :2])[:, :, None, None]
    rows = _offsets(vertical, parameter)[:, None]
    columns = _offsets(horizontal, parameter)[None, :]
    # Whiten the offsets by forward substitution with the Cholesky factor.
    first = rows * steep[:, 0]
    second = (columns - parameter[:, 2, None, None] * first) * steep[:, 1]
    weights = (-0.5 * (first.square() + second.square())).exp()
    in_reach = (rows.abs() <= reach[:, :1, None]) & (columns.abs() <= reach[:, 1:, None])
    weights = weights * in_reach
    return weights / weights.sum((1, 2), keepdim=True)


def _filter(x: Tensor, kernels: Tensor) -> Tensor:
    """Correlate every channel of sample n with kernels[n], without padding."""
    samples, channels = x.shape[:2]
    weight = kernels.to(x.dtype).repeat_interleave(channels, 0).unsqueeze(1)
    groups = samples * channels
    flat = F.conv2d(x.reshape(1, groups, *x.shape[2:]), weight, groups=groups)
    return flat.reshape(samples, channels, *flat.shape[2:])
