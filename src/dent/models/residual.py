"""The paper's residual nets: ResNet-26-4, ResNet-32-10 and their smaller relatives.

The paper (section 4.1) defines "a residual net with 26 layers and a width multiplier of 4
(ResNet-26-4) (He et al., 2016; Zagoruyko & Komodakis, 2016), following prior work on adaptation
(Sun et al., 2020; Wang et al., 2021)" and publishes no code for it. The text leaves two questions
open, and the code that was published for this prior work answers them:

- *Pre- or post-activation?* Normalization and ReLU come before each convolution (pre-activation),
  and once more before the pooling. Sun et al.'s ResNet-26 (repository
  yueatsprograms/ttt_cifar_release, models/ResNet.py) does the same, and so does Madry et al.'s
  32-layer, 10 times wide net (repository MadryLab/cifar10_challenge, model.py), which is the
  paper's ResNet-32-10.
- *Which shortcut?* If a block changes the shape, the shortcut is average-pooled and padded with
  zero channels. It has no parameters, as in both of these repositories. It is also the only
  shortcut with which the depth counts as 6n+2 (projections would add three layers, as in the 6n+4
  of Zagoruyko & Komodakis).

The pycls nets that Wang et al. trained are post-activation with projections. Their weights need
their own architecture and do not load into this one. This family differs from Sun et al.'s net in
two ways: the model itself normalizes the images, and it pools over all that remains of the image,
so that images of any size work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dent.errors import ConfigError, UnknownNameError
from dent.models.normalize import CIFAR10_MEAN, CIFAR10_STD, Normalize

#: Members that the paper uses (the first two) or that suit a CPU, for suggestions and listings.
EXAMPLES = ("resnet-26-4", "resnet-32-10", "resnet-14-2")

_NAME = re.compile(r"resnet-([0-9]{1,5})-([0-9]{1,5})")
_STAGES = (16, 32, 64)
_MAX_DEPTH = 1202  # the deepest net of He et al. (2016)
_MAX_WIDTH = 32  # twice the widest net in use; a larger number is probably a typing error


def is_member(name: str) -> bool:
    """Return whether a name has the form `resnet-{depth}-{width}`, with valid numbers or not."""
    return _NAME.fullmatch(name) is not None


def parse(name: str) -> tuple[int, int]:
    """Return the depth and the width multiplier in a name such as `resnet-26-4`.

    Args:
        name: `resnet-{depth}-{width}`, with depth 6n+2 from 8 to 1202 and width from 1 to 32.

    Returns:
        The depth (layers) and the width multiplier.

    Raises:
        UnknownNameError: If the name has another form or the family has no such member.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UnknownNameError(
            f"expected a name resnet-{{depth}}-{{width}} such as {', '.join(EXAMPLES)}, "
            f"got {name!r}"
        )
    depth, width = int(match[1]), int(match[2])
    if depth % 6 != 2 or not 8 <= depth <= _MAX_DEPTH:
        below = min(max(depth - (depth - 2) % 6, 8), _MAX_DEPTH)
        near = sorted({below, min(below + 6, _MAX_DEPTH)})
        raise UnknownNameError(
            f"{name!r}: the depth must be 6n+2 (8, 14, 20, 26, ..., {_MAX_DEPTH}), got {depth}; "
            f"nearest: {' or '.join(f'resnet-{d}-{width}' for d in near)}"
        )
    if not 1 <= width <= _MAX_WIDTH:
        raise UnknownNameError(
            f"{name!r}: the width multiplier must be from 1 to {_MAX_WIDTH}, got {width}"
        )
    if name != (plain := f"resnet-{depth}-{width}"):
        raise UnknownNameError(f"{name!r} is written {plain!r}")
    return depth, width


class Block(nn.Module):
    """Two 3x3 convolutions, each after normalization and ReLU, added to the block's input.

    Args:
        inputs: Channels coming in.
        channels: Channels going out, at least `inputs`.
        stride: 1, or 2 to halve height and width (rounding up).
    """

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.stride = stride
        self.added = channels - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, channels, H / stride, W / stride)."""
        residual = self.conv1(F.relu(self.norm1(x)))
        residual = self.conv2(F.relu(self.norm2(residual)))
        if self.stride > 1:
            # ceil_mode rounds half an odd height or width up, as the strided convolution does.
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        if self.added:
            x = F.pad(x, (0, 0, 0, 0, 0, self.added))
        y: Tensor = x + residual
        return y


class ResNet(nn.Module):
    """A residual net for small images, taking pixels in [0, 1] and returning logits.

    A 3x3 convolution to 16 channels, three stages of n = (depth - 2) / 6 blocks with 16k, 32k and
    64k channels (width multiplier k), batch normalization, ReLU, global average pooling, and a
    linear layer. Convolutions start from He et al.'s normal distribution (fan out), drawn from
    PyTorch's global random state.

    Args:
        depth: Layers, 6n+2.
        width: Width multiplier k.
        num_classes: Logits per image, at least 2.
        mean: The training data's mean per channel; CIFAR-10's by default.
        std: The training data's standard deviation per channel; CIFAR-10's by default.

    Raises:
        UnknownNameError: If the family has no member of this depth and width.
        ConfigError: If `num_classes`, `mean` or `std` is out of range.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int = 10,
        *,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
    ) -> None:
        super().__init__()
        self.depth, self.width = parse(f"resnet-{depth}-{width}")
        if num_classes < 2:
            raise ConfigError(f"num_classes must be at least 2, got {num_classes}")
        self.normalize = Normalize(mean, std)
        self.stem = nn.Conv2d(len(mean), _STAGES[0], 3, padding=1, bias=False)
        inputs = _STAGES[0]
        stages = []
        for index, base in enumerate(_STAGES):
            channels = base * width
            blocks = [Block(inputs, channels, stride=1 if index == 0 else 2)]
            blocks += [Block(channels, channels, stride=1) for _ in range((depth - 8) // 6)]
            stages.append(nn.Sequential(*blocks))
            inputs = channels
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Images (N, C, H, W) in [0, 1], with one channel per mean, of any height and width;
                (N, 3, 32, 32) in the paper.

        Returns:
            Logits (N, num_classes).

        Raises:
            InputError: If `x` has another shape.
        """
        x = self.stages(self.stem(self.normalize(x)))
        logits: Tensor = self.head(F.relu(self.norm(x)).mean(dim=(2, 3)))
        return logits


def resnet(
    name: str,
    num_classes: int = 10,
    *,
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
) -> ResNet:
    """Build a residual net by name, with random weights and in training mode.

    Args:
        name: `resnet-{depth}-{width}`: `resnet-26-4`, `resnet-32-10`, `resnet-14-2`, ...
        num_classes: Logits per image, at least 2.
        mean: The training data's mean per channel; CIFAR-10's by default.
        std: The training data's standard deviation per channel; CIFAR-10's by default.

    Returns:
        The model. `dent.models.load(name, weights=...)` returns a trained one.

    Raises:
        UnknownNameError: If the family has no member of that name.
        ConfigError: If `num_classes`, `mean` or `std` is out of range.
    """
    depth, width = parse(name)
    return ResNet(depth, width, num_classes, mean=mean, std=std)
