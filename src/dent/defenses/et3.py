"""Energy-guided test-time transformation, ET3 (Mirza et al., CVPR 2026)."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dent.defenses.perturbation import InputDefense
from dent.support.checks import read_number
from dent.support.rows import per_sample
from dent.threat import read_bounds

_PUBLISHED = math.sqrt(3 * 224 * 224)
"""Divisor that converts the authors' l2 lengths for ImageNet into root mean squares."""


class ET3(InputDefense):
    """A defense that moves the input to where the model's energy is lower, then predicts.

        E(x) = −log Σ_c exp model(x)_c,   g = ∇_δ E(x + δ),   δ ← Π(δ − η g / ‖g‖₂)

    from δ = 0. Π clips x + δ to the range of pixels, then shortens δ to a length of at most ε.
    Lower energy means more evidence for the classes that the model already favors.

    Each step is smooth almost everywhere, so the exact gradient through all steps exists
    (`adapt(x, differentiable=True)`). The authors' own evaluation holds δ constant, as `predict`
    does here (they call it BPDA), and adds a transfer attack from the static model.

    Source: Mirza, D'Orazio, Melamed and Masi, "A Provable Energy-Guided Test-Time Defense Boosting
    Adversarial Robustness of Large Vision-Language Models", and the authors' code for classifiers.
    Its command for ImageNet takes 5 steps of length 2.5 within 5, in l2 over 3 x 224 x 224 values.
    They give no command for small images. So that one setting suits every size, lengths here are
    root mean squares: the l2 length divided by the square root of the number of values per image.

    Args:
        model: the classifier.
        steps: number of steps.
        step_size: η, the root mean square of a step, in units of the input.
        eps: ε, the largest root mean square of δ, in units of the input.
        bounds: smallest and largest value of a pixel.

    Raises:
        ConfigError: a setting is out of range.
        UnsupportedModelError: the model is not supported.
    """

    name: ClassVar[str] = "et3"
    smooth: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int = 5,
        step_size: float = 2.5 / _PUBLISHED,
        eps: float = 5.0 / _PUBLISHED,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__(model, steps=steps, step_size=step_size)
        self.eps = read_number("eps", eps, 0.0)
        self.bounds = read_bounds(bounds)

    @property
    def settings(self) -> dict[str, Any]:
        """Steps, sizes and bounds."""
        return {
            "steps": self.steps,
            "step_size": self.step_size,
            "eps": self.eps,
            "bounds": list(self.bounds),
        }

    def _start(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def _loss(self, logits: Tensor, first: Tensor) -> Tensor:
        return -logits.logsumexp(1)

    def _direction(self, slope: Tensor) -> Tensor:
        length = _root_mean_square(slope)
        # A gradient of 0 has no direction: the sample stays where it is.
        return slope / torch.where(length > 0, length, 1)

    def _project(self, x: Tensor, perturbation: Tensor) -> Tensor:
        within = (x + perturbation).clamp(*self.bounds) - x
        return within * (self.eps / _root_mean_square(within).clamp(min=self.eps))


def _root_mean_square(x: Tensor) -> Tensor:
    """Return the root mean square of each sample's values, (N, 1, ...)."""
    length: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1) / math.sqrt(x[0].numel())
    return per_sample(length, x)
