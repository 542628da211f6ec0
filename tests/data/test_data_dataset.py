import hashlib
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dent.data import ArrayDataset
from dent.errors import InputError

CLASSES = ("a", "b", "c")


def dataset(count: int = 5, seed: int = 0, shape: tuple[int, int, int] = (2, 3, 3)) -> ArrayDataset:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return ArrayDataset("toy", "test", CLASSES, pixels, rng.integers(0, 3, count))


@given(
    count=st.integers(1, 6),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
    picks=st.lists(st.integers(0, 5), max_size=8),
)
def test_batch_returns_pixels_divided_by_255_in_the_requested_order(
    count: int, shape: tuple[int, int, int], picks: list[int]
) -> None:
    data = dataset(count, shape=shape)
    picks = [pick % count for pick in picks]
    images, labels = data.batch(picks)
    height, width, channels = shape
    assert images.shape == (len(picks), channels, height, width)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert labels.dtype == torch.int64
    for row, pick in enumerate(picks):
        assert labels[row] == data.labels[pick]
        expected = data.pixels[pick].astype(np.float32).transpose(2, 0, 1) / np.float32(255)
        np.testing.assert_array_equal(images[row].numpy(), expected)


def test_pixel_values_0_and_255_become_exactly_0_and_1() -> None:
    pixels = np.array([0, 255, 51], dtype=np.uint8).reshape(1, 1, 1, 3)
    images, _ = ArrayDataset("toy", "test", CLASSES, pixels, np.array([0])).batch([0])
    assert images.flatten().tolist() == [0.0, 1.0, pytest.approx(0.2)]


def test_positions_may_be_ranges_numpy_arrays_and_tensors() -> None:
    data = dataset()
    expected, _ = data.batch([1, 2, 3])
    for picks in (range(1, 4), np.arange(1, 4), torch.arange(1, 4)):
        given_as: Any = picks
        assert torch.equal(data.batch(given_as)[0], expected)


def test_writing_to_a_batch_does_not_change_the_dataset() -> None:
    data = dataset()
    images, labels = data.batch([0])
    before = images.clone(), labels.clone()
    images.zero_()
    labels.fill_(2)
    again = data.batch([0])
    assert torch.equal(again[0], before[0])
    assert torch.equal(again[1], before[1])


def test_the_arrays_of_a_dataset_are_read_only() -> None:
    data = dataset()
    for array in (data.pixels, data.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@given(st.data())
def test_a_subset_keeps_content_and_ids_of_the_full_split(data: st.DataObject) -> None:
    full = dataset(8)
    first = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=8))
    second = data.draw(st.lists(st.integers(0, len(first) - 1), max_size=6))
    part = full.subset(first).subset(second, name="part")
    assert part.name == "part"
    assert list(part.sample_ids) == [first[place] for place in second]
    assert len(part) == len(second)
    for mine, whole in zip(
        part.batch(range(len(part))), full.batch(list(part.sample_ids)), strict=True
    ):
        assert torch.equal(mine, whole)


def test_the_digest_is_sha256_over_pixels_then_labels() -> None:
    data = dataset()
    content = data.pixels.tobytes() + b"".join(
        int(label).to_bytes(8, "little") for label in data.labels
    )
    assert data.digest == hashlib.sha256(content).hexdigest()


def test_the_digest_does_not_depend_on_the_memory_layout() -> None:
    data = dataset()
    other = ArrayDataset("x", "test", CLASSES, np.asfortranarray(data.pixels), data.labels.copy())
    assert other.digest == data.digest


def test_writing_to_the_given_arrays_does_not_change_the_dataset() -> None:
    pixels, labels = np.zeros((2, 2, 2, 3), np.uint8), np.array([0, 1])
    data = ArrayDataset("toy", "test", CLASSES, pixels, labels)
    pixels[:], labels[:] = 255, 2
    images, found = data.batch([0, 1])
    assert (float(images.max()), found.tolist()) == (0.0, [0, 1])


def test_writing_to_the_memory_behind_a_read_only_view_does_not_change_the_dataset() -> None:
    memory = np.zeros((2, 2, 2, 3), np.uint8)
    view = memory[:]
    view.flags.writeable = False
    data = ArrayDataset("toy", "test", CLASSES, view, np.array([0, 1]))
    memory[:] = 255
    assert float(data.batch([0, 1])[0].max()) == 0.0


def test_a_read_only_array_that_owns_its_memory_is_not_copied() -> None:
    pixels = np.zeros((2, 2, 2, 3), np.uint8)
    pixels.flags.writeable = False
    data = ArrayDataset("toy", "test", CLASSES, pixels, np.array([0, 1]))
    assert np.shares_memory(data.pixels, pixels)
    stored = np.frombuffer(bytes(24), np.uint8).reshape(2, 2, 2, 3)
    assert np.shares_memory(ArrayDataset("x", "test", CLASSES, stored, data.labels).pixels, stored)


@given(st.data())
def test_the_digest_changes_with_any_pixel_or_label(data: st.DataObject) -> None:
    original = dataset()
    pixels, labels = original.pixels.copy(), original.labels.copy()
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, pixels.size - 1))
        pixels.flat[place] ^= np.uint8(data.draw(st.sampled_from([1 << n for n in range(8)])))
    else:
        place = data.draw(st.integers(0, labels.size - 1))
        labels[place] = (labels[place] + data.draw(st.integers(1, 2))) % 3
    assert ArrayDataset("toy", "test", CLASSES, pixels, labels).digest != original.digest


def test_an_empty_dataset_gives_empty_batches() -> None:
    data = dataset(0)
    images, labels = data.batch([])
    assert len(data) == 0
    assert images.shape == (0, 3, 2, 3)
    assert labels.shape == (0,)


@pytest.mark.parametrize(
    ("picks", "words"),
    [
        ([5], r"position 5 is not in range\(5\): it has 5 samples"),
        ([0, -1], r"position -1 is not in range\(5\)"),
        ([True, False], "mask.nonzero"),
        ([np.bool_(True)], "mask.nonzero"),
        ([1.0], r"expected integer positions, got 1.0 \(float\)"),
        (["1"], r"expected integer positions, got '1' \(str\)"),
        (torch.tensor([0.5]), "expected integer positions"),
    ],
)
def test_invalid_positions_are_refused(picks: Any, words: str) -> None:
    for ask in (dataset().batch, dataset().subset):
        with pytest.raises(InputError, match=words):
            ask(picks)


PIXELS = np.zeros((2, 2, 2, 3), dtype=np.uint8)
LABELS = np.zeros(2, dtype=np.int64)


@pytest.mark.parametrize(
    ("pixels", "labels", "ids", "words"),
    [
        (
            torch.zeros(2, 2, 2, 3),
            LABELS,
            (),
            r"NumPy array of pixels, got torch.Tensor: .*\.numpy\(\)",
        ),
        (PIXELS, [0, 0], (), "NumPy array of labels, got builtins.list"),
        (PIXELS.astype(np.float32), LABELS, (), "expected uint8 pixels .* got float32"),
        (PIXELS[0], LABELS, (), r"expected uint8 pixels .* got uint8 \(2, 2, 3\)"),
        (
            np.zeros((2, 3, 32, 32), dtype=np.uint8),
            LABELS,
            (),
            r"takes \(N, H, W, C\), got \(2, 3, 32, 32\).* pixels.transpose\(0, 2, 3, 1\)",
        ),
        (PIXELS, LABELS.astype(np.int32), (), "expected int64 labels .* got int32"),
        (PIXELS, LABELS[:1], (), r"expected int64 labels \(2,\)"),
        (PIXELS, LABELS + 3, (), "labels must be in 0 to 2, got 3 to 3"),
        (PIXELS, LABELS - 1, (), "labels must be in 0 to 2, got -1 to -1"),
        (PIXELS, LABELS, (1, 2, 3), "3 sample ids for 2 images"),
    ],
)
def test_invalid_or_mismatched_arrays_are_refused(
    pixels: Any, labels: Any, ids: tuple[int, ...], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        ArrayDataset("toy", "test", CLASSES, pixels, labels, ids)


@pytest.mark.parametrize("classes", ["cat", (1, 2, 3)])
def test_classes_that_are_no_names_are_refused(classes: Any) -> None:
    with pytest.raises(InputError, match="expected a tuple of class names"):
        ArrayDataset("toy", "test", classes, dataset().pixels, dataset().labels)


def test_a_dataset_can_be_pickled_for_workers() -> None:
    data = dataset().subset([3, 1])
    again = pickle.loads(pickle.dumps(data))  # noqa: S301 - made a line above
    assert again.digest == data.digest
    assert again.sample_ids == (3, 1)
    assert torch.equal(again.batch([0, 1])[0], data.batch([0, 1])[0])


def test_repr_gives_name_split_size_and_digest() -> None:
    assert repr(dataset()).startswith("<toy test: 5 images 2x3x3, sha256 ")
