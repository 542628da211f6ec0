"""Oracle: a slow dent with real modules, torch.optim and backward(), one model per parameter set.

It uses only the configuration of the package. The tests compare the package with it.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from dent import DentConfig

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass
class Outcome:
    """The result for a batch: parameters and smoothing are stacked over the sets of parameters."""

    logits: Tensor
    entropy: Tensor
    parameters: dict[str, Tensor]
    smoothing: Tensor | None


def adapt_and_predict(model: nn.Module, config: DentConfig, x: Tensor) -> Outcome:
    """Adapt copies of the model, one for the batch or one for each sample, and predict."""
    sets = x.split(1) if config.granularity == "sample" else [x]
    copies = [_trainable_copy(model, config) for _ in sets]
    smoothings = [_start(config, x.dtype) for _ in sets]
    optimizer = _optimizer(config, copies, smoothings)

    def forward() -> Tensor:
        parts = []
        for part, module, parameter in zip(sets, copies, smoothings, strict=True):
            kind = config.smoothing.covariance if config.smoothing else ""
            parts.append(module(part if parameter is None else smooth(part, parameter, kind)))
        return torch.cat(parts)

    entropies = []
    for _ in range(config.steps):
        logits = forward()
        optimizer.zero_grad()
        objective(logits, config).backward()
        optimizer.step()
        entropies.append(torch.distributions.Categorical(logits=logits.detach()).entropy())
    with torch.no_grad():
        logits = forward()
    named = [dict(module.named_parameters()) for module in copies]
    learned = [name for name, parameter in named[0].items() if parameter.requires_grad]
    return Outcome(
        logits=logits,
        entropy=torch.stack(entropies) if entropies else x.new_zeros(0, len(x)),
        parameters={name: torch.stack([each[name].detach() for each in named]) for name in learned},
        smoothing=None
        if smoothings[0] is None
        else torch.stack([parameter.detach() for parameter in smoothings if parameter is not None]),
    )


def objective(logits: Tensor, config: DentConfig) -> Tensor:
    p = logits.softmax(1)
    if config.objective == "entropy":
        values = -(p * logits.log_softmax(1)).sum(1)
    else:
        mean = p.mean(0)
        values = -(p * (p + 1e-5).log()).sum(1) + (mean * (mean + 1e-5).log()).sum()
    return values.mean() if config.reduction == "mean" else values.sum()


def _trainable_copy(model: nn.Module, config: DentConfig) -> nn.Module:
    module = copy.deepcopy(model).eval().requires_grad_(False)
    norms = [layer for layer in module.modules() if isinstance(layer, NORMS)]
    for depth, layer in enumerate(reversed(norms), 1):
        if config.last_layers is None or depth <= config.last_layers:
            layer.requires_grad_(config.adapt_affine)
        if isinstance(layer, _NormBase) and config.statistics == "test":
            layer.train()  # normalizes by the batch; its running statistics are not used
    return module


def _start(config: DentConfig, dtype: torch.dtype) -> nn.Parameter | None:
    if config.smoothing is None:
        return None
    start = math.log(config.smoothing.sigma)
    values = {"spherical": [start], "diagonal": [start] * 2, "full": [start, start, 0.0]}
    return nn.Parameter(
        torch.tensor(values[config.smoothing.covariance], dtype=dtype),
        requires_grad=config.smoothing.learn,
    )


def _optimizer(
    config: DentConfig, copies: list[nn.Module], smoothings: list[nn.Parameter | None]
) -> Any:
    groups: list[dict[str, Any]] = [
        {
            "params": [p for module in copies for p in module.parameters() if p.requires_grad],
            "lr": config.lr,
        },
        {
            "params": [p for p in smoothings if p is not None and p.requires_grad],
            "lr": config.smoothing.lr if config.smoothing else 1.0,
        },
    ]
    groups = [group for group in groups if group["params"]] or [
        {"params": [nn.Parameter(torch.zeros(1))]}
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=config.betas[0])
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=1.0, betas=config.betas)
    assert config.optimizer == "adamod"
    return pytorch_optimizer.AdaMod(groups, lr=1.0, betas=(*config.betas, config.beta3 or 0.0))


def covariance(parameter: Tensor, kind: str) -> Tensor:
    """Return the (2, 2) covariance of a smoothing parameter."""
    if kind == "spherical":
        return torch.eye(2, dtype=parameter.dtype) * (2 * parameter).exp()
    if kind == "diagonal":
        return torch.diag((2 * parameter).exp())
    zero = parameter.new_zeros(())
    lower = torch.stack([parameter[0].exp(), zero, parameter[2], parameter[1].exp()]).reshape(2, 2)
    return lower @ lower.T


def smooth(x: Tensor, parameter: Tensor, kind: str) -> Tensor:
    """Return the mean of shifted images, weighted by the Gaussian density of the shift."""
    matrix = covariance(parameter, kind)
    height, width = x.shape[-2:]
    reach = [
        min(max(1, math.ceil(3 * matrix[axis, axis].sqrt().item())), max(height, width))
        for axis in (0, 1)
    ]
    total, mass = torch.zeros_like(x), x.new_zeros(())
    for down in range(-reach[0], reach[0] + 1):
        for right in range(-reach[1], reach[1] + 1):
            offset = torch.tensor([down, right], dtype=x.dtype)
            weight = (-0.5 * offset @ torch.linalg.inv(matrix) @ offset).exp()
            rows = (torch.arange(height) + down).clamp(0, height - 1)
            columns = (torch.arange(width) + right).clamp(0, width - 1)
            total = total + weight * x[..., rows, :][..., columns]
            mass = mass + weight
    return total / mass


def input_gradient(
    forward: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, h: float
) -> Tensor:
    """Return the directional derivative of `forward` at x by fourth-order finite differences."""
    near = forward(x + h * direction) - forward(x - h * direction)
    far = forward(x + 2 * h * direction) - forward(x - 2 * h * direction)
    return (8 * near - far) / (12 * h)
