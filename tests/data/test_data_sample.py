import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dent.data import load, sample, store
from dent.data.cifar10 import CIFAR10
from dent.data.fetching import load_arrays
from dent.data.progress import silent
from dent.errors import DataError
from tools.draw_sample import draw, encode_sample, main

from .fakes import flip

SPECS_DIGEST = "1b95756c1be5a78f9fbde2b504227b280618c6f977316e7accfc40d3a513f5a6"


def test_the_sample_has_the_released_digest() -> None:
    data = load("cifar10-sample")
    assert (data.name, data.split, len(data)) == ("cifar10-sample", "test", 256)
    assert data.digest == SPECS_DIGEST
    images, labels = data.batch(range(len(data)))
    assert images.shape == (256, 3, 32, 32)
    content = images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    again = hashlib.sha256(content.tobytes() + labels.numpy().astype("<i8").tobytes())
    assert again.hexdigest() == SPECS_DIGEST


def test_the_first_n_images_are_balanced_by_class_for_every_n() -> None:
    data = load("cifar10-sample")
    _, labels = data.batch(range(len(data)))
    seen = Counter(dict.fromkeys(range(10), 0))
    for label in labels.tolist():
        seen[label] += 1
        assert max(seen.values()) - min(seen.values()) <= 1
    assert sorted(seen.values()) == [25] * 4 + [26] * 6


def test_sample_ids_are_distinct_positions_in_the_test_set() -> None:
    ids = load("cifar10-sample").sample_ids
    assert len(set(ids)) == 256
    assert min(ids) >= 0
    assert max(ids) < 10_000


def test_the_sample_equals_the_full_test_set_at_its_ids(real_root: Path) -> None:
    part, full = load("cifar10-sample"), load("cifar10", root=real_root, download=False)
    assert part.classes == full.classes
    mine, whole = part.batch(range(256)), full.batch(list(part.sample_ids))
    assert torch.equal(mine[0], whole[0])
    assert torch.equal(mine[1], whole[1])


def test_drawing_the_sample_again_gives_the_same_bytes(
    real_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DENT_DATA", str(real_root))
    main(["--out", str(tmp_path / "again")])
    assert (tmp_path / "again").read_bytes() == sample.SAMPLE_FILE.read_bytes()
    assert sample.SAMPLE_FILE_SHA256 in capsys.readouterr().out


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    size=st.integers(0, 20),
)
def test_draw_takes_the_classes_in_turn_and_images_by_hash(labels: list[int], size: int) -> None:
    classes = sorted(set(labels))
    rank = {
        n: hashlib.sha256(f"cifar10-sample {n}".encode()).hexdigest() for n in range(len(labels))
    }
    queues = {
        c: sorted((n for n in rank if labels[n] == c), key=lambda n: rank[n]) for c in classes
    }
    expected: list[int] = []
    while len(expected) < size:
        queue = queues[classes[len(expected) % len(classes)]]
        if not queue:
            with pytest.raises(DataError, match="the sample needs"):
                draw(labels, size)
            return
        expected.append(queue.pop(0))
    assert draw(labels, size) == expected


def test_the_encoded_sample_holds_pixels_labels_and_indices(real_root: Path) -> None:
    full = load_arrays(CIFAR10, "test", real_root, download=False, report=silent)
    pixels, labels, indices = store.decode(encode_sample(full), ("pixels", "labels", "indices"))
    np.testing.assert_array_equal(full.pixels[indices.astype(int)], pixels)
    np.testing.assert_array_equal(full.labels[indices.astype(int)], labels)


@pytest.mark.parametrize("at", [20, 1000, 400_000, -1])
def test_a_flipped_bit_in_the_file_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    copy = tmp_path / "sample"
    copy.write_bytes(sample.SAMPLE_FILE.read_bytes())
    monkeypatch.setattr(sample, "SAMPLE_FILE", copy)
    assert len(sample.load_sample()) == 256
    flip(copy, at)
    with pytest.raises(DataError, match=f"{copy} is damaged: .*reinstall torch-dent"):
        sample.load_sample()


def test_a_missing_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "SAMPLE_FILE", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"could not be read \(No such file.*reinstall torch-dent"):
        sample.load_sample()
