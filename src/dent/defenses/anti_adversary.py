"""The anti-adversary layer (Alfarra et al., AAAI 2022)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dent.defenses.perturbation import InputDefense


class AntiAdversary(InputDefense):
    """A defense that moves the input to where the model is more confident in its own prediction.

        ŷ = argmax model(x),   δ₀ = 0,   δₖ₊₁ = δₖ − α · sign ∇_δ CE(model(x + δₖ), ŷ)

    The label ŷ is the prediction for the unperturbed input. As published, x + δ is neither
    projected nor clipped to the range of pixels: |δ| is at most steps · α.

    Source: Alfarra, Pérez, Thabet, Bibi, Torr and Ghanem, "Combating Adversaries with
    Anti-Adversaries", and the authors' code, whose CIFAR-10 command has the same defaults.
    Croce et al. (ICML 2022) found no significant gain over the static model.

    Args:
        model: the classifier; images in [0, 1].
        steps: the paper's K.
        alpha: step size, in units of the input.

    Raises:
        ConfigError: `steps` or `alpha` is out of range.
        UnsupportedModelError: the model is not supported.
    """

    name: ClassVar[str] = "anti-adversary"
    sized_by: ClassVar[str] = "alpha"

    def __init__(self, model: nn.Module, *, steps: int = 2, alpha: float = 0.15) -> None:
        super().__init__(model, steps=steps, step_size=alpha)

    @property
    def settings(self) -> dict[str, Any]:
        """Steps and step size."""
        return {"steps": self.steps, "alpha": self.step_size}

    def _start(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def _loss(self, logits: Tensor, first: Tensor) -> Tensor:
        return F.cross_entropy(logits, first.argmax(1), reduction="none")

    def _project(self, x: Tensor, perturbation: Tensor) -> Tensor:
        return perturbation
