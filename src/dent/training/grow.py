"""Grow a trained residual net into a deeper and wider one that gives the same logits.

Training a large net that starts from a small one of its family takes fewer epochs than training it
from random weights (Net2Net, Chen et al. 2016, arXiv:1511.05641).

python -m dent.training.grow resnet-14-2-linf resnet-26-4 runs/train/grown.safetensors
"""

import sys
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from dent import models
from dent.errors import ConfigError, DentError
from dent.models.residual import Block, ResNet, resnet
from dent.training.state import write_weights

_UNEVEN: Final = (0.5, 1.5)


@torch.no_grad()
def grow(small: ResNet, name: str) -> ResNet:
    """Return a member of the family with the logits of a smaller one.

    To widen the net, every new channel copies a channel of `small`. The weights that read a channel
    are split among its copies, unevenly, so that training moves the copies apart. To deepen the
    net, each stage gets new blocks at its end, which add zero. The shares and the first
    convolutions of the new blocks are drawn from PyTorch's global random state.

    Args:
        small: The trained net, of width 2 or more.
        name: The member to return, `resnet-{depth}-{width}`, at least as deep and wide as `small`.

    Returns:
        The larger net, in eval mode, with the logits of `small` up to rounding.

    Raises:
        UnknownNameError: The family has no member of that name.
        ConfigError: `name` is shallower or narrower than `small`, or `small` has width 1.
    """
    norm = small.normalize
    large = resnet(
        name,
        small.head.out_features,
        mean=norm.mean.flatten().tolist(),
        std=norm.std.flatten().tolist(),
    )
    if small.width < 2 or large.depth < small.depth or large.width < small.width:
        raise ConfigError(
            f"resnet-{small.depth}-{small.width} cannot grow into {name}: expected a net of width "
            "2 or more to grow, and a net at least as deep and as wide to grow into."
        )
    large.to(small.head.weight.dtype)
    large.stem.load_state_dict(small.stem.state_dict())
    sources = torch.arange(small.stem.out_channels)
    for narrow, wide in zip(small.stages, large.stages, strict=True):
        sources = _grow_stage(_blocks(narrow), _blocks(wide), sources)
    _copy_norm(small.norm, large.norm, sources)
    large.head.weight.copy_(_split(small.head.weight, sources))
    large.head.bias.copy_(small.head.bias)
    return large.eval()


def _grow_stage(narrow: list[Block], wide: list[Block], sources: Tensor) -> Tensor:
    """Fill a stage; `sources` has, for each incoming channel, the channel of the small net.

    Returns the same for the stage's outgoing channels.
    """
    before, after = narrow[0].conv1.in_channels, narrow[0].conv2.out_channels
    # The shortcut keeps the order of channels, so the new channels follow the incoming ones.
    added = torch.arange(wide[0].conv2.out_channels - len(sources)) % (after - before) + before
    outgoing = torch.cat([sources, added])
    for index, block in enumerate(wide):
        if index < len(narrow):
            _grow_block(narrow[index], block, sources, outgoing)
        else:
            block.conv2.weight.zero_()
        sources = outgoing
    return outgoing


def _grow_block(narrow: Block, wide: Block, sources: Tensor, outgoing: Tensor) -> None:
    inner = torch.arange(wide.conv1.out_channels) % narrow.conv1.out_channels
    _copy_norm(narrow.norm1, wide.norm1, sources)
    wide.conv1.weight.copy_(_split(narrow.conv1.weight[inner], sources))
    _copy_norm(narrow.norm2, wide.norm2, inner)
    wide.conv2.weight.copy_(_split(narrow.conv2.weight[outgoing], inner))


def _blocks(stage: nn.Module) -> list[Block]:
    return [block for block in stage.children() if isinstance(block, Block)]


def _copy_norm(narrow: nn.BatchNorm2d, wide: nn.BatchNorm2d, sources: Tensor) -> None:
    for key, values in narrow.state_dict().items():
        wide.state_dict()[key].copy_(values[sources] if values.ndim else values)


def _split(weight: Tensor, sources: Tensor) -> Tensor:
    """Repeat input channels by `sources`, and split the weight of each among its copies."""
    part = weight.new_empty(len(weight), len(sources)).uniform_(*_UNEVEN)
    total = weight.new_zeros(len(weight), weight.shape[1]).index_add_(1, sources, part)
    share = part / total[:, sources]
    return weight[:, sources] * share.reshape(*share.shape, *[1] * (weight.ndim - 2))


def _grown(source: str, name: str) -> ResNet:
    small = models.load(source)
    if not isinstance(small, ResNet):
        raise ConfigError(
            f"{source} is not a resnet-DEPTH-WIDTH of this package, so it cannot grow."
        )
    return grow(small, name)


def _target(text: str) -> Path:
    path = Path(text).expanduser()
    if path.suffix != ".safetensors" or path.is_dir():
        raise ConfigError(
            f"the grown weights need a file name that ends in .safetensors, got {text!r}"
        )
    return path


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        torch.manual_seed(0)
        target = _target(sys.argv[3])
        write_weights(target, _grown(sys.argv[1], sys.argv[2]))
    except DentError as error:
        sys.exit(f"{error}")
