"""The loss of one training step, on natural images or on adversarial images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from dent.attacks.steps import ascent, uniform_in_ball
from dent.threat import ThreatModel
from dent.training.modes import evaluating
from dent.training.recipe import Recipe

_TRADES_START = 1e-3  # standard deviation of the start's noise in Zhang et al.'s published code


def training_loss(
    model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, attacked: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """Return the loss of one step, and the number of images that the model classified correctly.

    Randomness comes from torch's global generator. The images trained on update the model's running
    statistics; the queries of the inner attack do not.

    Args:
        model: the model in training mode, which takes images in [0, 1].
        x: natural images (N, C, H, W) in [0, 1].
        y: labels (N,).
        recipe: sets the method.
        attacked: the model that the inner attack queries: `model` without a wrapper such as
            DistributedDataParallel; `model` itself by default.

    Returns:
        The scalar loss, and the number of correct predictions on the adversarial images (on the
        natural images for nominal training), both on x's device.
    """
    attacked = model if attacked is None else attacked
    threat = recipe.threat
    if threat is None:
        logits = model(x).float()
        return F.cross_entropy(logits, y), _correct(logits, y)
    if recipe.method == "trades":
        return _trades(model, attacked, x, y, recipe, threat)
    perturb = _noisy_step if recipe.method == "n-fgsm" else _projected_steps
    with batch_statistics(attacked):
        perturbed = perturb(attacked, x, y, recipe, threat)
    logits = model(perturbed).float()
    return F.cross_entropy(logits, y), _correct(logits, y)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Normalize by the statistics of the batch, but do not update the running statistics."""
    tracking = [
        layer for layer in model.modules() if isinstance(layer, _NormBase) and _tracks(layer)
    ]
    # InstanceNorm updates its buffers even if it does not track.
    taken = [
        (layer, layer.running_mean, layer.running_var)
        for layer in tracking
        if isinstance(layer, _InstanceNorm)
    ]
    try:
        for layer in tracking:
            layer.track_running_stats = False
        for layer, _, _ in taken:
            layer.running_mean = layer.running_var = None
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True
        for layer, mean, variance in taken:
            layer.running_mean, layer.running_var = mean, variance


def _tracks(layer: _NormBase) -> bool:
    # In eval mode, InstanceNorm uses its buffers only as long as it tracks.
    return layer.track_running_stats and (layer.training or not isinstance(layer, _InstanceNorm))


def _noisy_step(
    model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, threat: ThreatModel
) -> Tensor:
    """Take one step from noise around x, not projected: N-FGSM (de Jorge et al. 2022)."""
    wide = ThreatModel(threat.norm, (recipe.noise or 0.0) * threat.eps)
    noise = uniform_in_ball(x, wide) if wide.eps else torch.zeros_like(x)
    start = (x + noise).clamp(*threat.bounds)
    gradient = _gradient(start, lambda z: F.cross_entropy(model(z).float(), y, reduction="sum"))
    moved = start + recipe.step_length * ascent(gradient, threat.norm)
    return moved.clamp(*threat.bounds)


def _projected_steps(
    model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, threat: ThreatModel
) -> Tensor:
    """Run projected gradient descent on the cross-entropy from a random start (equation 2)."""
    start = threat.project(x + uniform_in_ball(x, threat), x)
    return _ascend(
        start, x, recipe, threat, lambda z: F.cross_entropy(model(z).float(), y, reduction="sum")
    )


def _trades(
    model: nn.Module, attacked: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, threat: ThreatModel
) -> tuple[Tensor, Tensor]:
    """Return cross-entropy on x plus beta times the worst-case divergence (Zhang et al. 2019).

    As in their published code, the inner attack sees the model in eval mode.
    """
    with evaluating(attacked):
        # Not under no_grad: autocast would keep the casts of the weights without a gradient.
        natural = attacked(x).float().softmax(1).detach()
        start = threat.project(x + _TRADES_START * torch.randn_like(x), x)
        perturbed = _ascend(
            start,
            x,
            recipe,
            threat,
            lambda z: F.kl_div(attacked(z).float().log_softmax(1), natural, reduction="sum"),
        )
    logits, moved = model(x).float(), model(perturbed).float()
    divergence = F.kl_div(moved.log_softmax(1), logits.softmax(1), reduction="batchmean")
    loss = F.cross_entropy(logits, y) + (recipe.beta or 0.0) * divergence
    return loss, _correct(moved, y)


def _ascend(
    start: Tensor,
    x: Tensor,
    recipe: Recipe,
    threat: ThreatModel,
    objective: Callable[[Tensor], Tensor],
) -> Tensor:
    perturbed = start
    for _ in range(recipe.steps):
        gradient = _gradient(perturbed, objective)
        moved = perturbed + recipe.step_length * ascent(gradient, threat.norm)
        perturbed = threat.project(moved, x)
    return perturbed


def _gradient(x: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(leaf), leaf)
    return gradient


def _correct(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.detach().argmax(1) == y).sum()
