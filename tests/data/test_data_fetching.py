import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dent.data import ArrayDataset, store
from dent.data.fetching import FetchResult, fetch_arrays, load_arrays
from dent.data.progress import OnBytes, silent
from dent.data.sources import Arrays
from dent.data.spec import ArraySpec
from dent.errors import DataError

from .fakes import FOLDER, TINY, FakeSource, failing, flip, lay_folder, rows, tiny_spec

CACHE_FILES = ["tiny-test.safetensors", "tiny-train.safetensors"]


def fetch(
    spec: ArraySpec, root: Path, source: str = "auto", report: OnBytes = silent
) -> FetchResult:
    return fetch_arrays(spec, root, source, report)


def load(
    spec: ArraySpec, root: Path, split: str = "test", *, download: bool = True
) -> ArrayDataset:
    return load_arrays(spec, split, root, download=download, report=silent)


def listing(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


def snapshot(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def assert_is_tiny(data: ArrayDataset, split: str = "test") -> None:
    np.testing.assert_array_equal(data.pixels, TINY[split].pixels)
    np.testing.assert_array_equal(data.labels, TINY[split].labels)


def test_fetch_writes_both_splits_and_reports_their_path(tmp_path: Path) -> None:
    root = tmp_path / "not" / "yet" / "there"
    result = fetch(tiny_spec(FakeSource()), root)
    assert (result.name, result.path, result.source) == ("tiny", root, "fake")
    assert [path.name for path in result.files] == CACHE_FILES == listing(root)
    assert [attempt.source for attempt in result.tried] == ["folder", "cache"]
    for split in TINY:
        data = load(tiny_spec(), root, split)
        assert_is_tiny(data, split)
        assert data.digest == result.digests[split]
    assert result.digest == result.digests["test"]


def test_cached_data_is_not_fetched_again(tmp_path: Path) -> None:
    source = FakeSource()
    spec = tiny_spec(source)
    first = fetch(spec, tmp_path)
    again = fetch(spec, tmp_path)
    assert_is_tiny(load(spec, tmp_path))
    assert source.asked == 1
    assert again.source == "cache"
    assert again.files == first.files
    assert again.digests == first.digests


def test_load_fetches_missing_data(tmp_path: Path) -> None:
    source = FakeSource()
    assert_is_tiny(load(tiny_spec(source), tmp_path, "train"), "train")
    assert source.asked == 1
    assert listing(tmp_path) == CACHE_FILES


def test_error_of_load_without_download_names_the_searched_places(tmp_path: Path) -> None:
    source = FakeSource()
    with pytest.raises(DataError) as caught:
        load(tiny_spec(source), tmp_path, download=False)
    message = str(caught.value)
    assert f"folder: {tmp_path / FOLDER.base} is not there" in message
    assert f"cache: {tmp_path / CACHE_FILES[0]} is not there" in message
    assert "`dent data tiny`" in message
    assert f"copy it into {tmp_path} by hand" in message
    assert source.asked == 0


def test_the_folder_is_used_before_the_cache_and_before_any_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FakeSource()
    spec = tiny_spec(source)
    folder = lay_folder(tmp_path, monkeypatch.setattr)
    result = fetch(spec, tmp_path)
    assert (result.source, result.path, result.files) == ("folder", folder, ())
    assert listing(tmp_path) == [FOLDER.base]
    # This cache file would be refused, so a load that succeeds read the folder.
    (tmp_path / CACHE_FILES[0]).write_bytes(b"not looked at")
    for split in TINY:
        assert_is_tiny(load(spec, tmp_path, split), split)
    assert source.asked == 0


def test_sources_are_tried_in_order_and_each_failure_is_reported(tmp_path: Path) -> None:
    last = FakeSource("third")
    spec = tiny_spec(failing("first", "no route"), failing("second", "no such package"), last)
    result = fetch(spec, tmp_path)
    assert result.source == "third"
    told = {attempt.source: attempt.reason for attempt in result.tried}
    assert told["first"] == "no route"
    assert told["second"] == "no such package"


def test_error_after_all_sources_fail_lists_the_failures_and_a_remedy(tmp_path: Path) -> None:
    spec = tiny_spec(failing("first", "no route"), failing("second", "no such package"))
    with pytest.raises(DataError) as caught:
        fetch(spec, tmp_path)
    message = str(caught.value)
    for part in ("first: no route", "second: no such package", f"copy it into {tmp_path} by hand"):
        assert part in message
    assert message.index("folder:") < message.index("cache:") < message.index("first:")
    assert listing(tmp_path) == []


def test_a_source_chosen_by_name_is_the_only_one_used_and_replaces_files(tmp_path: Path) -> None:
    first, second = FakeSource("first"), FakeSource("second")
    spec = tiny_spec(first, second)
    fetch(spec, tmp_path)
    inode = (tmp_path / CACHE_FILES[0]).stat().st_ino
    result = fetch(spec, tmp_path, source="second")
    assert (first.asked, second.asked) == (1, 1)
    assert (result.source, result.tried) == ("second", ())
    assert (tmp_path / CACHE_FILES[0]).stat().st_ino != inode


def wrong(split: str, change: Callable[[Arrays], Arrays]) -> Mapping[str, Arrays]:
    return {**TINY, split: change(TINY[split])}


def one_pixel_off(arrays: Arrays) -> Arrays:
    pixels = arrays.pixels.copy()
    pixels[-1, -1, -1, -1] ^= 1
    return arrays._replace(pixels=pixels)


def one_label_off(arrays: Arrays) -> Arrays:
    labels = arrays.labels.copy()
    labels[-1] = (labels[-1] + 1) % 3
    return arrays._replace(labels=labels)


WRONG = {
    "a pixel": (wrong("test", one_pixel_off), "pixels have SHA-256"),
    "a label": (wrong("train", one_label_off), "labels have SHA-256"),
    "the channel order": (
        wrong("test", lambda arrays: arrays._replace(pixels=arrays.pixels[..., ::-1])),
        "pixels have SHA-256",
    ),
    "the image order": (
        wrong("train", lambda arrays: Arrays(arrays.pixels[::-1], arrays.labels[::-1])),
        "pixels have SHA-256",
    ),
    "too few": (wrong("train", lambda arrays: rows(arrays, 0, 5)), "have shape"),
    "a label too large": (
        wrong("test", lambda arrays: arrays._replace(labels=arrays.labels + 3)),
        "labels must be in 0 to 2",
    ),
    "a label missing": (
        wrong("test", lambda arrays: arrays._replace(labels=arrays.labels[:-1])),
        "expected int64 labels",
    ),
    "splits swapped": ({"test": TINY["train"], "train": TINY["test"]}, "have shape"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_from_a_source_is_refused_and_not_kept(tmp_path: Path, case: str) -> None:
    bring, words = WRONG[case]
    with pytest.raises(DataError, match=words):
        fetch(tiny_spec(FakeSource("liar", bring)), tmp_path)
    assert listing(tmp_path) == []
    result = fetch(tiny_spec(FakeSource("liar", bring), FakeSource("honest")), tmp_path)
    assert result.source == "honest"
    assert words in result.tried[-1].reason


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("bug"), MemoryError()])
def test_an_unexpected_error_ends_the_fetch_and_leaves_no_files(
    tmp_path: Path, error: BaseException
) -> None:
    other = FakeSource("other")
    with pytest.raises(type(error)):
        fetch(tiny_spec(FakeSource(error=error), other), tmp_path)
    assert listing(tmp_path) == []
    assert other.asked == 0


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("cancelled")])
def test_an_error_in_the_progress_callback_ends_the_fetch(tmp_path: Path, error: Exception) -> None:
    def cancel(stage: str, done: int, total: int | None) -> None:
        raise error

    other = FakeSource("other")
    with pytest.raises(type(error)):
        fetch(tiny_spec(FakeSource(), other), tmp_path, report=cancel)
    assert listing(tmp_path) == []
    assert other.asked == 0


def test_progress_counts_bytes_up_to_the_total(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    fetch(tiny_spec(FakeSource()), tmp_path, report=lambda *told: seen.append(told))
    assert seen[0] == ("bringing", 1, None)
    written = [(done, total) for stage, done, total in seen if stage == "writing"]
    size = sum(content.pixels.nbytes for content in TINY.values())
    assert written == [(0, size), (TINY["test"].pixels.nbytes, size), (size, size)]


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "a byte of the pixels flipped": lambda path: flip(path, -5000),
    "a byte of the labels flipped": lambda path: flip(path, -1),
    "something else": lambda path: path.write_bytes(b"<html>not found</html>"),
    "lengthened": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_file_is_named_and_kept_until_a_fetch_replaces_it(
    tmp_path: Path, damage: str
) -> None:
    fetch(tiny_spec(FakeSource()), tmp_path)
    file = tmp_path / "tiny-test.safetensors"
    DAMAGE[damage](file)
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match=re.escape(str(file))) as caught:
        load(tiny_spec(FakeSource()), tmp_path)
    assert "`dent data tiny` downloads it again" in str(caught.value)
    assert "or delete it" in str(caught.value)
    with pytest.raises(DataError, match="no route"):
        fetch(tiny_spec(failing("first", "no route")), tmp_path)
    assert snapshot(tmp_path) == before
    result = fetch(tiny_spec(FakeSource()), tmp_path)
    assert "is damaged" in result.tried[-1].reason
    assert_is_tiny(load(tiny_spec(), tmp_path))


def test_a_cache_file_that_holds_another_split_is_refused(tmp_path: Path) -> None:
    fetch(tiny_spec(FakeSource()), tmp_path)
    os.replace(tmp_path / CACHE_FILES[1], tmp_path / CACHE_FILES[0])
    with pytest.raises(DataError, match="is damaged"):
        load(tiny_spec(), tmp_path)


def test_the_test_split_is_loaded_without_the_train_split(tmp_path: Path) -> None:
    fetch(tiny_spec(FakeSource()), tmp_path)
    (tmp_path / CACHE_FILES[1]).write_bytes(b"damaged")
    assert_is_tiny(load(tiny_spec(), tmp_path))
    (tmp_path / CACHE_FILES[1]).unlink()
    assert_is_tiny(load(tiny_spec(), tmp_path))


@pytest.mark.parametrize("name", ["test_batch", "meta"])
def test_a_damaged_file_in_the_folder_is_named_and_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = lay_folder(tmp_path, monkeypatch.setattr)
    flip(folder / name, -3)
    before = snapshot(tmp_path)
    source = FakeSource()
    for act in (load, fetch):
        with pytest.raises(DataError, match=f"{re.escape(str(folder / name))} is damaged"):
            act(tiny_spec(source), tmp_path)
    assert snapshot(tmp_path) == before
    assert source.asked == 0


def test_loading_a_split_needs_only_its_own_files_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_folder(tmp_path, monkeypatch.setattr)
    flip(folder / "data_batch_1", -3)
    (folder / "data_batch_2").unlink()
    assert_is_tiny(load(tiny_spec(), tmp_path))
    with pytest.raises(DataError, match="data_batch_1 is damaged"):
        load(tiny_spec(), tmp_path, "train")


def test_fetch_uses_another_source_if_a_file_in_the_folder_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_folder(tmp_path, monkeypatch.setattr)
    (folder / "data_batch_2").unlink()
    result = fetch(tiny_spec(FakeSource()), tmp_path)
    assert result.source == "fake"
    assert f"{folder / 'data_batch_2'} is not there" in result.tried[0].reason
    assert_is_tiny(load(tiny_spec(), tmp_path, "train"), "train")


def test_a_folder_with_intact_files_of_other_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_folder(tmp_path, monkeypatch.setattr)
    spec = tiny_spec()
    other = replace(spec, splits={**spec.splits, "test": spec.splits["train"]})
    with pytest.raises(DataError, match=f"{re.escape(str(folder))} is not tiny: its pixels"):
        load(other, tmp_path)


def test_a_root_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="DENT_DATA"):
        fetch(tiny_spec(FakeSource()), tmp_path / "file" / "data")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_cache_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / CACHE_FILES[0]).mkdir()
    with pytest.raises(DataError, match="could not be read"):
        load(tiny_spec(FakeSource()), tmp_path)


def test_a_full_disk_keeps_the_split_that_was_already_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store.write

    def full_at_the_second(path: Path, content: bytes) -> None:
        if path.name == CACHE_FILES[1]:
            raise DataError(f"{path} could not be written: No space left on device")
        real(path, content)

    monkeypatch.setattr(store, "write", full_at_the_second)
    with pytest.raises(DataError, match="No space left"):
        fetch(tiny_spec(FakeSource()), tmp_path)
    assert listing(tmp_path) == CACHE_FILES[:1]
    assert_is_tiny(load(tiny_spec(), tmp_path))
    monkeypatch.undo()
    fetch(tiny_spec(FakeSource()), tmp_path)
    assert listing(tmp_path) == CACHE_FILES
