from collections.abc import Callable
from pathlib import Path
from textwrap import indent

import numpy as np
import pytest
import torchvision

from dent.data.cifar10 import CIFAR10
from dent.data.progress import silent
from dent.data.sources import SourceError
from dent.data.torchvision_source import TorchvisionSource

from .fakes import FOLDER, TINY, flip, lay_folder

# Replaces torchvision in the child process, since it comes first on the path.
FAKE_DATASETS = """\
import shutil, sys, time, urllib.error
from pathlib import Path

class TinyCifar:
    def __init__(self, root, download):
        assert download
{behaviour}
"""
COPY = "shutil.copytree({folder!r}, Path(root) / {base!r})"

Fake = Callable[[str], None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Return a function that gives the child process a fake torchvision."""

    def lay(behaviour: str) -> None:
        package = tmp_path / "path" / "torchvision"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        body = FAKE_DATASETS.format(behaviour=indent(behaviour, " " * 8))
        (package / "datasets.py").write_text(body)
        monkeypatch.setenv("PYTHONPATH", str(package.parent))

    return lay


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return lay_folder(tmp_path / "elsewhere", monkeypatch.setattr)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    path = tmp_path / "scratch"
    path.mkdir()
    return path


def source(stall_seconds: float = 30.0) -> TorchvisionSource:
    return TorchvisionSource(FOLDER, ("test", "train"), 1000, stall_seconds)


def test_data_that_the_child_process_downloads_is_read(
    fake: Fake, folder: Path, scratch: Path
) -> None:
    fake(COPY.format(folder=str(folder), base=FOLDER.base))
    seen: list[tuple[str, int, int | None]] = []
    brought = source().fetch(scratch, lambda *told: seen.append(told))
    for split, expected in TINY.items():
        np.testing.assert_array_equal(brought[split].pixels, expected.pixels)
        np.testing.assert_array_equal(brought[split].labels, expected.labels)
    assert seen[0] == ("downloading with torchvision", 0, 1000)
    assert all(done <= 1000 for _, done, _ in seen)


def test_error_gives_the_exception_of_the_child_process(fake: Fake, scratch: Path) -> None:
    fake("raise urllib.error.URLError('no route to host')")
    with pytest.raises(SourceError, match=r"^urllib\.error\.URLError: .*no route to host"):
        source().fetch(scratch, silent)


def test_a_child_process_that_exits_without_output_is_reported(fake: Fake, scratch: Path) -> None:
    fake("import os; os._exit(7)")
    with pytest.raises(SourceError, match="download ended with 7"):
        source().fetch(scratch, silent)


def test_a_hanging_download_is_stopped(fake: Fake, scratch: Path) -> None:
    fake("(Path(root) / 'archive').write_bytes(b'half'); time.sleep(60)")
    with pytest.raises(SourceError, match=r"nothing arrived for 1\.5 s, 4 bytes before that"):
        source(stall_seconds=1.5).fetch(scratch, silent)


def test_an_incomplete_download_is_refused(fake: Fake, folder: Path, scratch: Path) -> None:
    fake(COPY.format(folder=str(folder), base=FOLDER.base))
    (folder / "data_batch_2").unlink()
    with pytest.raises(
        SourceError, match=r"the download is incomplete: .*data_batch_2 is not there"
    ):
        source().fetch(scratch, silent)


def test_a_download_with_a_wrong_checksum_is_not_unpickled(
    fake: Fake, folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(COPY.format(folder=str(folder), base=FOLDER.base))
    flip(folder / "test_batch", 100)

    def unpickled(*_: object, **__: object) -> None:
        pytest.fail("unchecked bytes were unpickled")

    monkeypatch.setattr("pickle.load", unpickled)
    with pytest.raises(SourceError, match="test_batch is damaged"):
        source().fetch(scratch, silent)


def test_the_cifar10_layout_matches_torchvision() -> None:
    real = getattr(torchvision.datasets, CIFAR10.folder.dataset)
    assert CIFAR10.folder.base == real.base_folder
    assert all(getattr(real, f"{split}_list") for split in CIFAR10.splits)
