"""CIFAR-100: torchvision's own files, checked with torchvision's own checksums."""

import dataclasses
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from numpy.typing import NDArray

import dent.data
from dent.data import registry
from dent.data.cifar100 import CIFAR100
from dent.data.spec import SplitFacts
from dent.errors import DataError

from .fakes import FakeSource, flip

TEST = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
TRAIN = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def lay(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a small CIFAR-100 in its own layout, and patch torchvision with its checksums."""
    folder = root / CIFAR100.folder.base
    folder.mkdir(parents=True)

    def dump(name: str, content: object) -> str:
        written = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(written)
        return hashlib.md5(written).hexdigest()  # noqa: S324 - torchvision's own kind of sum

    def split(pixels: NDArray[np.uint8], first: int) -> dict[str, object]:
        flat = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
        fine = [(first + at) % 100 for at in range(len(pixels))]
        return {"data": flat, "fine_labels": fine, "coarse_labels": [0] * len(pixels)}

    real = torchvision.datasets.CIFAR100
    sums = {
        "test": dump("test", split(TEST, 97)),
        "train": dump("train", split(TRAIN, 40)),
        "meta": dump("meta", {"fine_label_names": list(CIFAR100.classes)}),
    }
    monkeypatch.setattr(real, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(real, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(real, "meta", real.meta | {"md5": sums["meta"]})
    small = {name: SplitFacts(n, None, None) for name, n in (("test", 3), ("train", 5))}
    source = FakeSource("torchvision")
    spec = dataclasses.replace(CIFAR100, splits=small, sources=(source,))
    monkeypatch.setitem(registry._SPECS, "cifar100", spec)
    return folder


def test_pixels_and_fine_labels_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, monkeypatch)
    ours = dent.data.load("cifar100", root=tmp_path)
    images, labels = ours.batch(range(3))
    assert torch.equal(images, torch.from_numpy(TEST).permute(0, 3, 1, 2).float() / 255)
    assert labels.tolist() == [97, 98, 99]
    assert [ours.classes[at] for at in labels] == ["wolf", "woman", "worm"]
    assert len(dent.data.load("cifar100", "train", root=tmp_path)) == 5
    found = dent.data.fetch("cifar100", root=tmp_path)
    assert (found.source, found.digest, found.files) == ("folder", ours.digest, ())


def test_a_damaged_file_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lay(tmp_path, monkeypatch)
    flip(folder / "test", 50)
    monkeypatch.setattr("pickle.load", lambda *_, **__: pytest.fail("unchecked bytes"))
    with pytest.raises(DataError, match=r"cifar-100-python/test is damaged: its MD5 sum is not"):
        dent.data.load("cifar100", root=tmp_path)


class Served(FakeSource):
    """A source that moves a prepared folder to where a download would be."""

    def __init__(self, laid: Path) -> None:
        super().__init__("torchvision")
        self.laid = laid

    def fetch(self, scratch: Path, report: object) -> object:  # type: ignore[override]
        self.asked += 1
        self.laid.rename(scratch / self.laid.name)
        spec = registry._SPECS["cifar100"]
        return {split: spec.folder.read(scratch, split) for split in spec.splits}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Served:
    source = Served(lay(tmp_path / "served", monkeypatch))
    spec = dataclasses.replace(registry._SPECS["cifar100"], sources=(source,))
    monkeypatch.setitem(registry._SPECS, "cifar100", spec)
    return source


def test_fetch_keeps_the_files_of_torchvision_and_writes_no_decoded_copy(
    tmp_path: Path, served: Served
) -> None:
    root = tmp_path / "root"
    found = dent.data.fetch("cifar100", root=root, source="torchvision")
    assert (found.source, found.path) == ("torchvision", root / "cifar-100-python")
    assert sorted(path.name for path in root.rglob("*")) == [
        "cifar-100-python",
        "meta",
        "test",
        "train",
    ]
    assert dent.data.load("cifar100", root=root, download=False).digest == found.digest
    assert dent.data.fetch("cifar100", root=root).source == "folder"
    assert served.asked == 1


@pytest.mark.parametrize("source", ["auto", "torchvision"])
@pytest.mark.parametrize("files", [{"my-notes.txt": "mine"}, {"train": "damaged"}, {}])
def test_fetch_refuses_an_existing_folder_before_the_download_and_leaves_it_unchanged(
    tmp_path: Path, served: Served, source: str, files: dict[str, str]
) -> None:
    folder = tmp_path / "root" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(DataError, match=r"cifar-100-python exists, .* What to do: move it away"):
        dent.data.fetch("cifar100", root=tmp_path / "root", source=source)
    assert {path.name: path.read_text() for path in folder.iterdir()} == files
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert served.asked == 0


def test_a_decoded_safetensors_file_is_never_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No digests are known, so any cifar100-test.safetensors would be accepted."""
    lay(tmp_path / "elsewhere", monkeypatch)
    root = tmp_path / "root"
    root.mkdir()
    (root / "cifar100-test.safetensors").write_bytes(b"anything")
    with pytest.raises(DataError, match="cifar-100-python is not there"):
        dent.data.load("cifar100", root=root, download=False)


def test_the_spec_matches_the_layout_of_torchvision() -> None:
    real = torchvision.datasets.CIFAR100
    assert CIFAR100.folder.base == real.base_folder
    assert len(set(CIFAR100.classes)) == 100
    assert list(CIFAR100.classes) == sorted(CIFAR100.classes)
    assert [CIFAR100.splits[split].count for split in ("test", "train")] == [10_000, 50_000]
