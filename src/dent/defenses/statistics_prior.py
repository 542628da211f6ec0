"""Statistics between the model's and the batch's (Schneider et al., NeurIPS 2020)."""

import math
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from dent.adaptation.adaptation import Adaptation
from dent.adaptation.adapted_model import check_supported
from dent.config import DentConfig
from dent.defenses.base import ReferenceDefense
from dent.defenses.batch_norm import OtherStatistics
from dent.errors import ConfigError

STATISTICS_ONLY: Final = DentConfig(steps=0, statistics="test")
"""Nothing adapts but the statistics."""


class StatisticsPrior(ReferenceDefense):
    """Normalize by a mean of the model's running statistics and the current batch's.

        μ = N/(N+n) μ_train + n/(N+n) μ_batch,   and the same for the variance

    for n samples, at every BatchNorm layer in turn; nothing else adapts. N = 0 is
    `statistics-only`, N → ∞ the static model. The variance of the batch is the biased one, by
    which BatchNorm normalizes (the authors' code takes the unbiased one).

    Source: Schneider, Rusak, Eck, Bringmann, Brendel and Bethge, "Improving robustness against
    common corruptions by covariate shift adaptation", and the authors' code.

    Args:
        model: the classifier; its BatchNorm layers keep running statistics.
        strength: N, the number of samples that the model's own statistics count as; at least 0.

    Raises:
        ConfigError: `strength` is out of range.
        UnsupportedModelError: the model cannot be computed, or no layer keeps running statistics.
    """

    name: ClassVar[str] = "statistics-prior"

    def __init__(self, model: nn.Module, *, strength: float = 16.0) -> None:
        number: object = strength
        real = isinstance(number, int | float) and not isinstance(number, bool)
        if not real or not 0 <= strength < math.inf:
            raise ConfigError(f"strength must be a finite number, at least 0, got {strength!r}.")
        check_supported(model, STATISTICS_ONLY)
        super().__init__(model)
        self.strength = float(strength)

    @property
    def batch_dependent(self) -> bool:
        """True: the other members change the batch's statistics."""
        return True

    @property
    def settings(self) -> dict[str, Any]:
        """The prior's strength."""
        return {"strength": self.strength}

    def adapt(self, x: Tensor, *, differentiable: bool = False) -> Adaptation:
        """Return an empty adaptation: the statistics are computed anew at every forward."""
        return self.classifier.adapt(x, differentiable=differentiable)

    def predict(self, x: Tensor, adaptation: Adaptation) -> Tensor:
        """Return logits (N, classes), with the exact gradient to `x`, statistics included."""
        with _Mixed(self.strength):
            return self.classifier.predict(x, adaptation)


class _Mixed(OtherStatistics):
    """The model's statistics and the batch's, mixed."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self._strength = strength

    def statistics(
        self, values: Tensor, running_mean: Tensor, running_var: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch_var, batch_mean = torch.var_mean(values, (0, 2), correction=0)
        share = self._strength / (self._strength + len(values))
        mean = share * running_mean + (1 - share) * batch_mean
        return mean, share * running_var + (1 - share) * batch_var
