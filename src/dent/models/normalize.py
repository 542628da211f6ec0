"""The dataset's normalization as a model's first layer, so that models take pixels in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dent.errors import ConfigError, InputError

#: Per-channel mean and standard deviation (red, green, blue) of the CIFAR-10 training images.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


class Normalize(nn.Module):
    """A layer that subtracts a mean and divides by a standard deviation, channel by channel.

    Attacks, eps and smoothing are all defined on pixels in [0, 1], so the normalization must
    happen inside the model. Both tensors are buffers: they move and cast with the model and are
    part of its state dict, so weights always come with the normalization they were trained with.

    Args:
        mean: One mean per channel, of pixels in [0, 1].
        std: One standard deviation per channel, each above zero.

    Raises:
        ConfigError: If the lengths differ or are zero, or a standard deviation is not above zero.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or not all(value > 0 for value in std):
            raise ConfigError(
                "Normalize: expected one mean and one standard deviation above zero for each "
                f"channel, got mean={tuple(mean)} and std={tuple(std)}"
            )
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize images.

        Args:
            x: Images (N, C, H, W) in [0, 1], with one channel per mean.

        Returns:
            Normalized images of the same shape.

        Raises:
            InputError: If `x` is not (N, C, H, W) with one channel per mean. Without this check,
                one channel would silently broadcast to three.
        """
        channels = self.mean.shape[0]
        if x.ndim != 4 or x.shape[1] != channels:
            hint = ""
            if x.ndim == 4 and x.shape[3] == channels:
                hint = "; the channels come last here: x.permute(0, 3, 1, 2) puts them second"
            elif x.ndim == 3:
                hint = "; for a single image add the batch dimension: x.unsqueeze(0)"
            raise InputError(
                f"the model takes images (N, {channels}, H, W), got {tuple(x.shape)}{hint}"
            )
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """Return the mean and the standard deviation of each channel, for `print(model)`."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"
