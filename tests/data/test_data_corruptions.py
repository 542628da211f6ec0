"""Corrupted images in the layout of CIFAR-10-C."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dent.data
from dent.errors import DataError, UnknownNameError

COUNT = 4


def lay(root: Path, folder: str = "CIFAR-10-C", **changes: Any) -> Path:
    place = root / folder
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    fog = rng.integers(0, 256, (5 * COUNT, 32, 32, 3), dtype=np.uint8)
    arrays = {"fog": fog, "labels": np.tile(np.array([3, 8, 8, 0], dtype=np.uint8), 5)}
    for name, array in (arrays | changes).items():
        np.save(place / f"{name}.npy", array, allow_pickle=array.dtype == object)
    return place


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_each_severity_loads_its_part_of_the_file(tmp_path: Path, severity: int) -> None:
    place = lay(tmp_path)
    ours = dent.data.load(f"cifar10-c/fog/{severity}", root=tmp_path)
    pixels = np.load(place / "fog.npy")[(severity - 1) * COUNT : severity * COUNT]
    images, labels = ours.batch(range(COUNT))
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(images, expected)
    assert labels.tolist() == [3, 8, 8, 0]
    assert (ours.name, ours.split, ours.classes[3]) == (f"cifar10-c/fog/{severity}", "test", "cat")


def test_severities_have_different_digests_and_the_worst_is_the_default(tmp_path: Path) -> None:
    lay(tmp_path)
    digests = {dent.data.load(f"cifar10-c/fog/{s}", root=tmp_path).digest for s in range(1, 6)}
    assert len(digests) == 5
    worst = dent.data.load("cifar10-c/fog", root=tmp_path)
    assert worst.name == "cifar10-c/fog/5"


def test_root_may_be_the_folder_of_the_dataset_itself(tmp_path: Path) -> None:
    place = lay(tmp_path, "elsewhere")
    assert len(dent.data.load("cifar10-c/fog/1", root=place)) == COUNT
    found = dent.data.fetch("cifar10-c/fog/1", root=place)
    assert (found.path, found.source, found.name) == (place, "folder", "cifar10-c/fog/1")


def test_cifar100_c_has_a_hundred_classes(tmp_path: Path) -> None:
    lay(tmp_path, "CIFAR-100-C", labels=np.tile(np.array([99, 1, 2, 3]), 5))
    ours = dent.data.load("cifar100-c/fog/2", root=tmp_path)
    assert (len(ours.classes), ours.labels_of([0])) == (100, [99])


@pytest.mark.parametrize(
    "name", ["cifar10-c", "cifar10-c/", "cifar10-c/fog/0", "cifar10-c/fog/12", "cifar10-c/fog/1/2"]
)
def test_error_for_a_malformed_name_gives_the_expected_form(name: str) -> None:
    with pytest.raises(UnknownNameError, match="CORRUPTION/SEVERITY with a severity from 1 to 5"):
        dent.data.load(name)


def test_error_for_an_unknown_corruption_lists_the_available_ones(tmp_path: Path) -> None:
    lay(tmp_path)
    with pytest.raises(UnknownNameError, match=r"fogg\.npy is not there; .* has fog$"):
        dent.data.load("cifar10-c/fogg/1", root=tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fog": np.zeros((20, 3, 32, 32), np.uint8)}, "its channels are first, but must be"),
        ({"fog": np.zeros((20, 32, 32, 3), np.float32)}, "contains float32"),
        ({"fog": np.zeros((19, 32, 32, 3), np.uint8)}, r"expected uint8 \(20, 32, 32, 3\)"),
        ({"labels": np.zeros(21, np.uint8)}, "as many for each of 5 severities"),
        ({"labels": np.zeros(20, np.float32)}, "expected whole numbers"),
        ({"labels": np.arange(20) % 10}, "different labels at different severities"),
        ({"labels": np.full(20, 10)}, "labels must be in 0 to 9, got 10 to 10"),
        ({"labels": np.zeros(50_000, np.uint8)}, "not have the labels of CIFAR-10's test"),
        ({"fog": np.array([None] * 20, dtype=object)}, "is damaged or not a .npy file"),
    ],
)
def test_files_with_invalid_content_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    lay(tmp_path, **changes)
    with pytest.raises(DataError, match=said):
        dent.data.load("cifar10-c/fog/1", root=tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    file = lay(tmp_path) / "fog.npy"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"fog\.npy is damaged or not a \.npy file"):
        dent.data.load("cifar10-c/fog/1", root=tmp_path)


def test_a_missing_file_or_split_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"CIFAR-10-C/labels\.npy is not there.*--data"):
        dent.data.load("cifar10-c/fog/1", root=tmp_path)
    with pytest.raises(DataError, match="no 'train' split"):
        dent.data.load("cifar10-c/fog/1", "train", root=tmp_path)
