"""MedBN (Park et al., CVPR 2024): normalize by the median of the batch, not by its mean."""

from typing import Any, ClassVar

from torch import Tensor

from dent.defenses.batch_norm import BatchNormDefense


class MedBN(BatchNormDefense):
    """A defense that normalizes by the batch's median, and by its mean square around the median.

        μ = median(z),   σ² = mean((z − μ)²)

    for the inputs z of a channel, over all samples and positions, at every BatchNorm layer in turn.
    Nothing else adapts. A few attacked samples move a median less than a mean, which protects the
    other members of the batch: in the authors' threat model, only part of the batch is attacked. An
    attack on the whole batch moves the median as well. For an even number of inputs, the median is
    the lower of the two middle ones.

    Source: Park, Hwang, Mun, Park and Ok, "MedBN: Robust Test-Time Adaptation against Malicious
    Test Samples", and the authors' code, which also adapts scales and shifts by other methods.

    Args:
        model: the classifier; its BatchNorm layers keep running statistics.

    Raises:
        UnsupportedModelError: the model is not supported, or no BatchNorm layer keeps running
            statistics.
    """

    name: ClassVar[str] = "med-bn"

    @property
    def settings(self) -> dict[str, Any]:
        """There are no settings."""
        return {}

    def statistics(
        self, values: Tensor, running_mean: Tensor, running_var: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return each channel's median, and its mean square around the median."""
        by_channel = values.transpose(0, 1).flatten(1)
        median = by_channel.median(dim=1).values
        return median, (by_channel - median[:, None]).square().mean(dim=1)
