"""Small smooth classifiers, one for every kind of normalization layer and layout."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 4
CLASSES = 3


class ChannelsFirstLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of images, as in ConvNeXt."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        moved = input.movedim(1, -1)
        normalized = F.layer_norm(moved, self.normalized_shape, self.weight, self.bias, self.eps)
        return normalized.movedim(-1, 1)


def without_bias(layer: nn.Module) -> nn.Module:
    layer.register_parameter("bias", None)
    return layer


@dataclass(frozen=True)
class Kind:
    """A normalization layer and the layout of its input.

    Attributes:
        make: builds one layer over `CHANNELS` channels.
        dims: number of spatial axes, between 0 and 3.
        channels_last: whether the channels come after the spatial axes.
        mixes: whether test statistics differ from train statistics.
    """

    make: Callable[[], nn.Module]
    dims: int
    channels_last: bool = False
    mixes: bool = False


KINDS: dict[str, Kind] = {
    "BatchNorm1d": Kind(lambda: nn.BatchNorm1d(CHANNELS), 0, mixes=True),
    "BatchNorm1d-length": Kind(lambda: nn.BatchNorm1d(CHANNELS), 1, mixes=True),
    "BatchNorm2d": Kind(lambda: nn.BatchNorm2d(CHANNELS), 2, mixes=True),
    "BatchNorm2d-no-bias": Kind(lambda: without_bias(nn.BatchNorm2d(CHANNELS)), 2, mixes=True),
    "BatchNorm3d": Kind(lambda: nn.BatchNorm3d(CHANNELS), 3, mixes=True),
    "SyncBatchNorm": Kind(lambda: nn.SyncBatchNorm(CHANNELS), 2, mixes=True),
    "LayerNorm": Kind(lambda: nn.LayerNorm(CHANNELS), 1, channels_last=True),
    "LayerNorm-flat": Kind(lambda: nn.LayerNorm(CHANNELS), 0),
    "LayerNorm-no-bias": Kind(lambda: nn.LayerNorm(CHANNELS, bias=False), 2, channels_last=True),
    "LayerNorm-channels-first": Kind(lambda: ChannelsFirstLayerNorm(CHANNELS), 2),
    "LayerNorm-two-axes": Kind(lambda: nn.LayerNorm((2, CHANNELS)), 1, channels_last=True),
    "GroupNorm": Kind(lambda: nn.GroupNorm(2, CHANNELS), 2),
    "GroupNorm-flat": Kind(lambda: nn.GroupNorm(1, CHANNELS), 0),
    "InstanceNorm1d": Kind(lambda: nn.InstanceNorm1d(CHANNELS, affine=True), 1),
    "InstanceNorm2d": Kind(lambda: nn.InstanceNorm2d(CHANNELS, affine=True), 2),
    "InstanceNorm3d": Kind(lambda: nn.InstanceNorm3d(CHANNELS, affine=True), 3),
    "InstanceNorm2d-running": Kind(
        lambda: nn.InstanceNorm2d(CHANNELS, affine=True, track_running_stats=True), 2, mixes=True
    ),
    "RMSNorm": Kind(lambda: nn.RMSNorm(CHANNELS), 1, channels_last=True),
    "RMSNorm-eps": Kind(lambda: nn.RMSNorm(CHANNELS, eps=0.1), 2, channels_last=True),
}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def sample_shape(kind: str, extent: int) -> tuple[int, ...]:
    """Shape of one sample: two input channels, and `extent` per axis (2 if the kind fixes it)."""
    chosen = KINDS[kind]
    axes = (2 if kind == "LayerNorm-two-axes" else extent,) * chosen.dims
    return (*axes, 2) if chosen.channels_last else (2, *axes)


def randomize_norms(model: nn.Module, seed: int = 0) -> None:
    """Give every normalization layer parameters and statistics other than 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    types = tuple({type(kind.make()) for kind in KINDS.values()})
    for layer in model.modules():
        if isinstance(layer, types):
            state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
            for name, tensor in state.items():
                if name in {"weight", "running_var"}:
                    tensor.data.uniform_(0.5, 1.5, generator=generator)
                elif name != "num_batches_tracked":
                    tensor.data.normal_(0, 0.3, generator=generator)


def make_toy(kind: str, extent: int = 3, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Return a smooth network with two normalization layers of that kind, in train mode."""
    chosen = KINDS[kind]

    def mix(inputs: int) -> nn.Module:
        if chosen.channels_last or chosen.dims == 0:
            return nn.Linear(inputs, CHANNELS)
        return CONVOLUTIONS[chosen.dims](inputs, CHANNELS, 1)

    features = CHANNELS * (torch.Size(sample_shape(kind, extent)).numel() // 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            mix(2),
            chosen.make(),
            nn.GELU(),
            mix(CHANNELS),
            chosen.make(),
            nn.Flatten(),
            nn.Linear(features, CLASSES),
        )
    randomize_norms(model)
    return model.to(dtype)


def make_batch(
    kind: str, samples: int, extent: int = 3, dtype: torch.dtype = torch.float64, seed: int = 1
) -> Tensor:
    """Return random inputs for `make_toy(kind, extent)`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, *sample_shape(kind, extent))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
