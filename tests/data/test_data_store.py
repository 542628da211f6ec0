import os
import resource
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dent.data import store
from dent.data.sources import Arrays
from dent.errors import DataError

from .fakes import TINY, flip, tiny_spec

SMALL = TINY["test"]


def content_of(arrays: Arrays) -> bytes:
    tensors: dict[str, NDArray[Any]] = {"pixels": arrays.pixels, "labels": arrays.labels}
    return store.encode(tensors)


def litter(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_written_split_is_read_back_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.safetensors"
    store.write(path, content_of(SMALL))
    back = store.read_split(path)
    np.testing.assert_array_equal(back.pixels, SMALL.pixels)
    np.testing.assert_array_equal(back.labels, SMALL.labels)
    assert litter(path.parent) == ["x.safetensors"]


def test_the_encoding_does_not_depend_on_the_memory_layout() -> None:
    turned = SMALL._replace(pixels=np.asfortranarray(SMALL.pixels))
    assert content_of(turned) == content_of(SMALL)


def test_a_flipped_bit_in_any_byte_of_the_header_is_detected(tmp_path: Path) -> None:
    spec = tiny_spec()
    path = tmp_path / "x"
    content = content_of(SMALL)
    header = 8 + int.from_bytes(content[:8], "little")
    for at in range(header):
        for bit in {at % 8, 5}:
            path.write_bytes(content)
            flip(path, at, 1 << bit)
            with pytest.raises(DataError):
                spec.recognize("test", store.read_split(path))


@given(at=st.integers(0), bit=st.integers(0, 7))
def test_any_flipped_bit_in_the_data_is_detected(at: int, bit: int) -> None:
    content = bytearray(content_of(SMALL))
    header = 8 + int.from_bytes(content[:8], "little")
    content[header + at % (len(content) - header)] ^= 1 << bit
    pixels, labels = store.decode(bytes(content), ("pixels", "labels"))
    with pytest.raises(DataError):
        tiny_spec().recognize("test", Arrays(pixels.astype(np.uint8), labels.astype(np.int64)))


@given(kept=st.floats(0, 1, exclude_max=True))
def test_a_file_truncated_anywhere_is_refused(kept: float) -> None:
    content = content_of(SMALL)
    with pytest.raises(DataError, match="damaged or not a safetensors file"):
        store.decode(content[: int(kept * len(content))], ("pixels", "labels"))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"pixels": SMALL.pixels}, r"it contains \['pixels'\], expected \['labels', 'pixels'\]"),
        ({"pixels": SMALL.pixels.astype(np.int16), "labels": SMALL.labels}, "int16 pixels"),
        ({"pixels": SMALL.pixels, "labels": SMALL.labels.astype(np.int32)}, "int32 labels"),
    ],
)
def test_a_file_with_missing_arrays_or_wrong_dtypes_is_refused(
    tmp_path: Path, tensors: dict[str, NDArray[Any]], words: str
) -> None:
    path = tmp_path / "x"
    path.write_bytes(store.encode(tensors))
    with pytest.raises(DataError, match=words):
        store.read_split(path)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    store.write(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses to write more than this, so the write fails partway.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(DataError, match=r"x\.safetensors .*could not be written.*make room"):
            store.write(path, bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert litter(tmp_path) == ["x.safetensors"]


def test_a_file_in_place_of_the_folder_is_reported_and_kept(tmp_path: Path) -> None:
    (tmp_path / "in-the-way").write_text("mine")
    with pytest.raises(DataError, match="DENT_DATA"):
        store.write(tmp_path / "in-the-way" / "x", b"new")
    assert (tmp_path / "in-the-way").read_text() == "mine"


def test_a_folder_in_place_of_the_file_is_reported_and_kept(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("mine")
    with pytest.raises(DataError, match="could not be written"):
        store.write(tmp_path / "x", b"new")
    assert litter(tmp_path) == ["x"]


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that the current user, even root, may not write to."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)


def test_a_folder_without_write_permission_is_reported(closed: Path) -> None:
    with pytest.raises(DataError, match=r"x .*could not be written: Permission denied.*DENT_DATA"):
        store.write(closed / "x", b"new")


def test_a_process_killed_while_writing_leaves_no_file_of_the_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
            store.write(path, b"new")
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert not path.exists()
    store.write(path, b"whole")
    assert path.read_bytes() == b"whole"


def test_content_is_synced_to_disk_before_the_file_gets_its_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def spy(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            order.append(name)
            if name == "replace":
                part, final = arguments
                assert Path(str(part)).read_bytes() == b"new"
                assert Path(str(part)).parent == Path(str(final)).parent
                assert not Path(str(final)).exists()
            real(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", spy("fsync", os.fsync))
    monkeypatch.setattr(os, "replace", spy("replace", os.replace))
    store.write(tmp_path / "x", b"new")
    assert order == ["fsync", "replace"]


def test_an_interrupt_while_writing_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.write(tmp_path / "x", b"new")
    assert litter(tmp_path) == []


def test_written_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        store.write(tmp_path / "x", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644
