"""MedBN (Park et al., CVPR 2024): normalize by the median of the batch, not by its mean."""

from typing import Any, ClassVar

from torch import Tensor

from dent.defenses.batch_norm import BatchNormDefense


class MedBN(BatchNormDefense):
    """Normalize by the current batch's median, and by its mean square around the median.

        μ = median(z),   σ² = mean((z − μ)²)

    for the inputs z of a channel, over all samples and positions, at every BatchNorm layer in turn.
    Nothing else adapts. A few attacked samples move a median less than they move a mean, which
    defends the other members of the batch: its authors' threat model attacks a part of the batch.
    An attack on the whole batch moves the median as well. Of an even number of inputs, the median
    is the lower of the two in the middle.

    Source: Park, Hwang, Mun, Park and Ok, "MedBN: Robust Test-Time Adaptation against Malicious
    Test Samples", and the authors' code, which also adapts scales and shifts by other methods.

    Args:
        model: the classifier; its BatchNorm layers keep running statistics.

    Raises:
        UnsupportedModelError: the model cannot be computed, or no layer keeps running statistics.
    """

    name: ClassVar[str] = "med-bn"

    @property
    def settings(self) -> dict[str, Any]:
        """None."""
        return {}

    def statistics(
        self, values: Tensor, running_mean: Tensor, running_var: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the batch's median, and its mean square around it."""
        by_channel = values.transpose(0, 1).flatten(1)
        median = by_channel.median(dim=1).values
        return median, (by_channel - median[:, None]).square().mean(dim=1)
