"""Small, fast models of every kind that a defense must support."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer, resnet18
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from dent import models


def make_images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(7), dtype=dtype)


def make_tiny_cnn() -> nn.Sequential:
    """Return the network of tests/golden/README.md, with random weights."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def _convolutional(norm: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        norm(),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def _linear(norm: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(192, 16),
        norm(),
        nn.ReLU(),
        nn.Linear(16, 10),
    )


def _vision_transformer() -> nn.Module:
    model = VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        dropout=0.5,
        num_classes=10,
    )
    # Initialized to zero, which would block the gradient to the layers.
    nn.init.normal_(model.get_parameter("heads.head.weight"))
    return model


def _convnext() -> nn.Module:
    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    return ConvNeXt(blocks, stochastic_depth_prob=0.5, layer_scale=1.0, num_classes=10)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tiny-cnn": make_tiny_cnn,
    "resnet18-nominal": lambda: models.load("resnet18-nominal"),
    "torchvision-resnet18": lambda: resnet18(num_classes=10),
    "vision-transformer": _vision_transformer,
    "convnext": _convnext,
    "group-norm": partial(_convolutional, lambda: nn.GroupNorm(2, 8)),
    "instance-norm": partial(_convolutional, lambda: nn.InstanceNorm2d(8, affine=True)),
    "sync-batch-norm": partial(_convolutional, lambda: nn.SyncBatchNorm(8)),
    "layer-norm": partial(_linear, lambda: nn.LayerNorm(16)),
    "rms-norm": partial(_linear, lambda: nn.RMSNorm(16)),
    "batch-norm-1d": partial(_linear, lambda: nn.BatchNorm1d(16)),
}
BATCH_NORM = (
    "tiny-cnn",
    "resnet18-nominal",
    "torchvision-resnet18",
    "sync-batch-norm",
    "batch-norm-1d",
)
