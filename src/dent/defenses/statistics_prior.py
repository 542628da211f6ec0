"""Normalization by a mix of train and test statistics (Schneider et al., NeurIPS 2020)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dent.defenses.batch_norm import BatchNormDefense
from dent.errors import ConfigError
from dent.support.checks import is_number


class StatisticsPrior(BatchNormDefense):
    """A defense that normalizes by a weighted mean of train statistics and test statistics.

        μ = N/(N+n) μ_train + n/(N+n) μ_batch,   and the same for the variance

    for n samples, at every BatchNorm layer in turn; nothing else adapts. N = 0 is the defense
    `statistics-only`, and N → ∞ is the static model. The batch's variance is the biased estimate,
    as in BatchNorm (the authors' code uses the unbiased estimate).

    Source: Schneider, Rusak, Eck, Bringmann, Brendel and Bethge, "Improving robustness against
    common corruptions by covariate shift adaptation", and the authors' code.

    Args:
        model: the classifier; its BatchNorm layers keep running statistics.
        strength: N, the number of samples that the train statistics count as; at least 0.

    Raises:
        ConfigError: `strength` is out of range.
        UnsupportedModelError: the model is not supported, or no BatchNorm layer keeps running
            statistics.
    """

    name: ClassVar[str] = "statistics-prior"

    def __init__(self, model: nn.Module, *, strength: float = 16.0) -> None:
        if not is_number(strength) or strength < 0:
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
        """Return the weighted mean of the model's statistics and the batch's."""
        batch_var, batch_mean = torch.var_mean(values, (0, 2), correction=0)
        share = self.strength / (self.strength + len(values))
        mean = share * running_mean + (1 - share) * batch_mean
        return mean, share * running_var + (1 - share) * batch_var
