"""Hedge defense (Wu et al. 2021)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dent.defenses.perturbation import InputDefense
from dent.errors import ConfigError
from dent.support.checks import read_number
from dent.threat import read_bounds


class Hedge(InputDefense):
    """A defense that attacks all classes at once from a random start, then predicts.

        δ₀ ~ U(−ε, ε),   δₖ₊₁ = Π(δₖ + η · sign ∇_δ Σ_c CE(model(x + δₖ), c))

    Π clips δ to [−ε, ε], then x + δ to the range of pixels. The sum over classes is, up to
    constants, the divergence KL(uniform ‖ prediction) of the authors' code. The idea is that after
    adversarial training the true class is the least sensitive, so the attack harms it the least.

    Source: Wu, Pan, Shen, Gu, Zhao, Li, Cai, He and Liu, "Attacking Adversarial Attacks as A
    Defense", and the authors' code, which has the same defaults. The prediction is made at the last
    point, as in the evaluation by Croce et al. (ICML 2022), who found no significant gain over the
    static model. The authors' script instead sums the logits of the points along the way.

    Args:
        model: the classifier.
        steps: number of steps.
        step_size: η, in units of the input.
        eps: ε, in units of the input.
        bounds: smallest and largest value of a pixel.
        seed: None draws a new start from PyTorch's global generator at every call, so the defense
            is randomized, as published. With a seed, the start is one fixed pattern for every
            sample, so a prediction depends neither on the call nor on the sample's place in the
            batch.

    Raises:
        ConfigError: a setting is out of range.
        UnsupportedModelError: the model is not supported.
    """

    name: ClassVar[str] = "hedge"

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int = 20,
        step_size: float = 0.007,
        eps: float = 0.031,
        bounds: tuple[float, float] = (0.0, 1.0),
        seed: int | None = None,
    ) -> None:
        super().__init__(model, steps=steps, step_size=step_size)
        self.eps = read_number("eps", eps, 0.0)
        self.bounds = read_bounds(bounds)
        value: object = seed
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ConfigError(f"seed must be a whole number or None, got {seed!r}.")
        self.seed = seed

    @property
    def randomized(self) -> bool:
        """True if there is no seed."""
        return self.seed is None

    @property
    def settings(self) -> dict[str, Any]:
        """Steps, sizes, bounds and seed."""
        return {
            "steps": self.steps,
            "step_size": self.step_size,
            "eps": self.eps,
            "bounds": list(self.bounds),
            "seed": self.seed,
        }

    def _start(self, x: Tensor) -> Tensor:
        if self.seed is None:
            return torch.empty(x.shape, dtype=x.dtype, device=x.device).uniform_(
                -self.eps, self.eps
            )
        generator = torch.Generator().manual_seed(self.seed)
        pattern = torch.empty(x.shape[1:], dtype=torch.float64)
        pattern.uniform_(-self.eps, self.eps, generator=generator)
        return pattern.to(x.dtype).to(x.device).expand(x.shape)

    def _loss(self, logits: Tensor, first: Tensor) -> Tensor:
        return logits.log_softmax(1).sum(1)

    def _project(self, x: Tensor, perturbation: Tensor) -> Tensor:
        return (x + perturbation.clamp(-self.eps, self.eps)).clamp(*self.bounds) - x


def fixed_hedge(model: nn.Module) -> Hedge:
    """Return the hedge defense with one fixed start, as a factory for `--defense`.

    The published defense draws its start, so the suite must run every attack on it. This one is
    deterministic, so a run can stop once a gain can no longer be shown.

    Args:
        model: the classifier.

    Raises:
        UnsupportedModelError: the model is not supported.
    """
    return Hedge(model, seed=0)
