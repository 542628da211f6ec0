"""A defense as the gradient check queries it: its served logits, and its gradient for attacks."""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from dent.attacks import Defense, DynamicDefense, answer
from dent.attacks.adaptive import Rung
from dent.attacks.adaptive.capabilities import adapt_accepts
from dent.attacks.base import isolated_random_state
from dent.attacks.losses import runner_up
from dent.attacks.protocol import as_queried, query
from dent.attacks.querier import NoGradientError, View, derivatives_of
from dent.evaluation.records.plan import seed_of
from dent.evaluation.submission.fresh import Origin
from dent.support.devices import wide


@dataclass(frozen=True)
class DefenseView:
    """A defense in one precision. Every query goes to a fresh copy.

    Attributes:
        origin: The defense before its first query.
        dtype: The precision in which it runs.
        dependent: Whether its predictions depend on the batch.
        seed: Seed of its generators.
    """

    origin: Origin
    dtype: torch.dtype
    dependent: bool
    seed: int

    def defense(self) -> Defense:
        """Return a fresh copy of the defense."""
        defense = self.origin.new(self.seed).defense
        if self.dtype == torch.float64 and isinstance(defense, nn.Module):
            defense = defense.double()
        return defense

    def under(self, purpose: str, count: int) -> list["DefenseView"]:
        """Return views of the same defense under other seeds."""
        seeds = (seed_of(self.seed, purpose, index) for index in range(count))
        return [replace(self, seed=seed) for seed in seeds]

    def served(self, x: Tensor) -> Tensor:
        """Return the logits that the defense serves."""
        with (
            isolated_random_state(self.seed, x.device),
            torch.inference_mode(mode=False),
            torch.no_grad(),
        ):
            return answer(self.defense(), x.to(self.dtype))

    def gradient(self, x: Tensor, y: Tensor, targets: Tensor) -> Tensor | None:
        """Return the gradient of each member's margin as an attack computes it; None if none."""
        return self.margins(x, y, targets)[1]

    def margins(self, x: Tensor, y: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return each member's margin (N,) and its gradient as an attack computes it, or None."""
        with (
            isolated_random_state(self.seed, x.device),
            torch.inference_mode(mode=False),
            torch.enable_grad(),
        ):
            leaf = x.detach().to(self.dtype).requires_grad_()
            _, view = best_gradient(self.defense())
            logits = view(as_queried(leaf))
            margins = margin(logits, y, targets)
            gradient: Tensor | None = None
            if logits.requires_grad:
                with suppress(NoGradientError), derivatives_of(self.origin.defense):
                    (gradient,) = torch.autograd.grad(margins.sum(), leaf, allow_unused=True)
        return margins.detach(), gradient

    def loss(self, x: Tensor, y: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of the served logits that attacks maximize, by member (N,)."""
        return wide(margin(self.served(x), y, targets))


def best_gradient(defense: Defense) -> tuple[str, View]:
    """Return a view of the defense with its best gradient: through the adaptation if possible.

    The name of the gradient in records comes first: `unrolled`, or else `plain`.
    """
    if isinstance(defense, DynamicDefense) and adapt_accepts(defense, "differentiable"):
        return "unrolled", Rung("unrolled").view(defense)
    return "plain", partial(query, defense)


def margin(logits: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """Return the margin of a fixed wrong class. It is differentiable wherever the logits are.

    An excluded class counts as a constant.
    """
    picked = logits.gather(1, torch.stack([targets, y], dim=1))
    picked = picked.masked_fill(picked.isneginf(), 0.0)
    return picked[:, 0] - picked[:, 1]


@dataclass(frozen=True)
class AttackPoint:
    """A point that an attack reaches, with the gradient there."""

    x: Tensor
    y: Tensor
    targets: Tensor
    gradient: Tensor


def attack_point(view: DefenseView, x: Tensor, y: Tensor) -> AttackPoint:
    """Return these images as a point of an attack toward the likeliest wrong classes.

    Raises:
        NoGradientError: The defense answers without a gradient.
    """
    logits = view.served(x).nan_to_num()
    targets = runner_up(logits, y, 1)
    gradient = view.gradient(x, y, targets)
    if gradient is None:
        name = type(view.origin.defense).__name__
        raise NoGradientError(f"{name} answers without a gradient to the images")
    return AttackPoint(x, y, targets, gradient)


def or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    """Return a gradient, or zeros like the images if there is none."""
    return torch.zeros_like(like) if gradient is None else gradient
