"""Statistics between the model's and the batch's (Schneider et al., NeurIPS 2020)."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dent.defenses.batch_norm import BatchNormDefense
from dent.errors import ConfigError


class StatisticsPrior(BatchNormDefense):
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
        super().__init__(model)
        self.strength = float(strength)

    @property
    def settings(self) -> dict[str, Any]:
        """The prior's strength."""
        return {"strength": self.strength}

    def statistics(
        self, values: Tensor, running_mean: Tensor, running_var: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the model's statistics and the batch's, mixed."""
        batch_var, batch_mean = torch.var_mean(values, (0, 2), correction=0)
        share = self.strength / (self.strength + len(values))
        mean = share * running_mean + (1 - share) * batch_mean
        return mean, share * running_var + (1 - share) * batch_var
