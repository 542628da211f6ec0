"""Image folders: listed like torchvision, read lazily, and identified by a checked digest."""

import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

import dent.data
from dent.data import file_digests, image_folder
from dent.data.image_folder import ImageFolderDataset
from dent.errors import (
    DataError,
    DataWarning,
    InputError,
    SmallImagesWarning,
    UnknownNameError,
)
from tests.unlisted import deny

from .images import CLASSES, lay_images, picture

NAME = "imagefolder-r24-c20"


def opened(root: Path, name: str = NAME, split: Any = "test") -> ImageFolderDataset:
    found = dent.data.load(name, split, root=root)
    assert isinstance(found, ImageFolderDataset)
    return found


def age(root: Path, seconds: int = 100) -> None:
    """Make every file old enough for its digest to be cached."""
    for path in root.rglob("*"):
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - seconds * 10**9))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lay_images(tmp_path / "images", each=3)


def test_classes_and_samples_match_torchvisions_image_folder(folder: Path) -> None:
    (folder / "boat" / "deeper").mkdir()
    picture(99).save(folder / "boat" / "deeper" / "0.jpg")
    (folder / "cat" / "notes.txt").write_text("no image")
    transform = Compose([Resize(24), CenterCrop(20), PILToTensor()])
    oracle = ImageFolder(str(folder), transform=transform)
    ours = opened(folder)
    assert ours.classes == tuple(oracle.classes) == CLASSES
    assert len(ours) == len(oracle) == 10
    images, labels = ours.batch(range(len(ours)))
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    for at, (pixels, label) in enumerate(oracle):
        assert torch.equal(images[at], pixels.float() / 255)
        assert int(labels[at]) == label
    assert list(ours.sample_ids) == list(range(10))


def test_only_requested_images_are_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = opened(folder)
    real, seen = Image.open, []

    def counted(*arguments: Any, **settings: Any) -> Any:
        seen.append(1)
        return real(*arguments, **settings)

    monkeypatch.setattr(image_folder.Image, "open", counted)
    assert ours.labels_of([0, 4, 8]) == [0, 1, 2]
    assert len(seen) == 0
    images, labels = ours.batch([8, 0, 8])
    assert len(seen) == 3
    assert labels.tolist() == [2, 0, 2]
    assert torch.equal(images[0], images[2])
    assert ours.batch([])[0].shape == (0, 3, 20, 20)
    for act in (ours.batch, ours.labels_of):
        with pytest.raises(InputError, match=r"position 9 is not in range\(9\)"):
            act([9])


def test_the_digest_changes_with_content_class_order_and_image_size(
    folder: Path, tmp_path: Path
) -> None:
    first = opened(folder).digest
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert opened(copy).digest == first
    assert opened(copy, "imagefolder-r24-c21").digest != first
    (copy / "apple").rename(copy / "zebra")
    assert opened(copy).digest != first
    other = shutil.copytree(folder, tmp_path / "other")
    path = other / "cat" / "0.png"
    path.write_bytes(path.read_bytes() + b"\0")
    assert opened(other).digest != first


def test_the_digest_is_the_documented_one_and_cannot_be_passed_in(folder: Path) -> None:
    ours = opened(folder)
    lines = [json.dumps(["r24-c20", list(CLASSES)])]
    for path, label in zip(ours.files, ours.labels.tolist(), strict=True):
        content = hashlib.sha256((folder / path).read_bytes()).hexdigest()
        lines.append(json.dumps([path, label, content]))
    assert (
        ours.digest == hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
    )
    with pytest.raises(ValueError, match="digest"):
        dataclasses.replace(ours, digest="f" * 64)
    renamed = dataclasses.replace(ours, classes=("one", "two", "three"))
    assert renamed.digest == ours.digest


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": np.arange(9)}, "labels must be in 0 to 2, got 0 to 8"),
        (
            {"labels": np.zeros(8, np.int64)},
            r"expected int64 labels \(9,\), one for every file, got",
        ),
        (
            {"digests": np.zeros((9, 16), np.uint8)},
            r"expected uint8 digests \(9, 32\), .* \(9, 16\)",
        ),
        ({"sample_ids": range(3)}, "3 sample ids for 9 files"),
    ],
)
def test_labels_digests_and_ids_that_do_not_fit_the_files_are_refused(
    folder: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        dataclasses.replace(opened(folder), **changes)


def test_labels_cannot_change_after_the_digest_was_computed(folder: Path) -> None:
    given = np.repeat(np.arange(3), 3)
    ours = dataclasses.replace(opened(folder), labels=given)
    given[:] = 0
    assert ours.labels_of(range(9)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_file_digests_are_cached_until_a_file_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(folder)
    first = opened(folder)
    monkeypatch.setattr(file_digests, "_take", lambda *_: pytest.fail("taken again"))
    assert opened(folder).digest == first.digest
    monkeypatch.undo()
    path = folder / "boat" / "0.png"
    picture(77).save(path)
    assert opened(folder).digest != first.digest


def test_digests_of_recently_changed_files_are_not_cached(folder: Path) -> None:
    opened(folder)
    assert not list(dent.data.data_root().rglob("*.sha256s"))


def test_batch_refuses_a_file_that_does_not_match_its_cached_digest(folder: Path) -> None:
    """The content changes, but the size and the modification time do not."""
    age(folder)
    opened(folder)
    path = folder / "boat" / "0.png"
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = opened(folder)
    again.batch([0, 1, 2, 4])
    with pytest.raises(DataError, match=r"boat/0\.png has changed since"):
        again.batch([3])


def test_a_digest_cache_that_cannot_be_written_only_causes_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    age(folder)
    (tmp_path / "file").touch()
    monkeypatch.setenv("DENT_DATA", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="computed again next time"):
        assert len(opened(folder)) == 9


def test_error_names_a_truncated_image(folder: Path) -> None:
    path = folder / "boat" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    broken = opened(folder)
    with pytest.raises(
        DataError, match=r"boat/0\.png is a damaged image: .*copy it again or delete"
    ):
        broken.batch(range(9))


def test_an_eps_file_named_png_is_refused_without_running_ghostscript(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript"))
    picture(7).save(folder / "boat" / "0.eps")
    (folder / "boat" / "0.eps").replace(folder / "boat" / "0.png")
    with pytest.raises(
        DataError, match=r"0\.png is damaged or not an image \(JPEG, PNG"
    ) as refused:
        opened(folder).batch([3])
    assert "object at" not in str(refused.value)


def test_an_image_with_the_suffix_of_another_format_is_read(folder: Path) -> None:
    """ImageNet has a PNG file with the suffix .JPEG."""
    before, _ = opened(folder).batch([3])
    (folder / "boat" / "0.png").rename(folder / "boat" / "0.jpeg")
    after, _ = opened(folder).batch([3])
    assert torch.equal(before, after)


@pytest.mark.parametrize("size", [(1, 600_000), (600_000, 1)])
def test_error_names_an_image_with_an_extreme_aspect_ratio(
    folder: Path, size: tuple[int, int]
) -> None:
    Image.new("L", size).save(folder / "boat" / "0.png")
    with pytest.raises(DataError, match=r"boat/0\.png is not taken: .*600000"):
        opened(folder, "imagefolder").batch([3])


def test_error_names_an_image_with_too_many_pixels(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"boat/0\.png is a damaged image: .*decompression bomb"):
        opened(folder).batch([3])


def test_a_named_pipe_is_refused_without_waiting_for_it(folder: Path) -> None:
    os.mkfifo(folder / "boat" / "z.png")
    with pytest.raises(DataError, match=r"boat/z\.png is not a regular file"):
        opened(folder)


def test_an_unreadable_subfolder_is_refused_and_not_skipped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "boat" / "deeper").mkdir()
    deny(monkeypatch, folder / "boat" / "deeper")
    with pytest.raises(DataError, match=r"boat/deeper cannot be read: Permission denied\. What to"):
        opened(folder)


def test_an_unreadable_hidden_subfolder_is_skipped_like_a_readable_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "boat" / ".trash").mkdir()
    deny(monkeypatch, folder / "boat" / ".trash")
    assert len(opened(folder)) == 9


def test_error_names_a_file_that_was_deleted_after_loading(folder: Path) -> None:
    ours = opened(folder)
    (folder / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match=r"cat/0\.png cannot be read"):
        ours.batch([6])


@pytest.mark.parametrize("content", [None, "notes.txt", ".hidden.png"])
def test_error_names_a_class_without_images(folder: Path, content: str | None) -> None:
    (folder / "dog").mkdir()
    if content:
        (folder / "dog" / content).touch()
    with pytest.raises(DataError, match=r"1 of 4 classes have no images: dog\. What to do"):
        opened(folder)


def test_train_and_val_folders_are_splits_with_the_same_classes(tmp_path: Path) -> None:
    lay_images(tmp_path / "train", each=3)
    lay_images(tmp_path / "val", each=1)
    assert len(opened(tmp_path, split="train")) == 9
    assert len(opened(tmp_path)) == 3
    shutil.rmtree(tmp_path / "val" / "boat")
    with pytest.raises(DataError, match=r"different class folders.*Missing in the first: boat"):
        opened(tmp_path)


@pytest.mark.parametrize("laid", ["nothing", "one class", "train alone"])
def test_error_for_a_folder_without_classes_gives_the_expected_layout(
    tmp_path: Path, laid: str
) -> None:
    if laid == "one class":
        lay_images(tmp_path, ("cat",))
    if laid == "train alone":
        lay_images(tmp_path / "train")
    with pytest.raises(DataError, match=r"CLASS/IMAGE\.jpg"):
        opened(tmp_path)


def test_error_about_a_folder_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder .*nowhere does not exist\. What to do"):
        opened(tmp_path / "nowhere")
    (tmp_path / "0.png").touch()
    with pytest.raises(DataError, match=r"val/CLASS.*or the folders of the classes themselves"):
        opened(tmp_path)
    with pytest.raises(DataError, match=r"a subfolder train .*\(train/CLASS/IMAGE\.jpg\)\. What"):
        opened(tmp_path, split="train")


def test_load_and_fetch_without_a_folder_are_refused() -> None:
    for act in (dent.data.load, dent.data.fetch):
        with pytest.raises(DataError, match=r"imagefolder needs a folder\..*--data FOLDER"):
            act("imagefolder")


def test_equivalent_names_become_one_canonical_name(tmp_path: Path) -> None:
    lay_images(tmp_path)
    for written, name in (
        ("imagefolder", "imagefolder"),
        ("imagefolder-224", "imagefolder"),
        ("imagefolder-r256-c224", "imagefolder"),
        ("imagefolder-c288", "imagefolder-288"),
    ):
        assert opened(tmp_path, written).name == name
    with pytest.raises(UnknownNameError, match="no preprocessing '32'"):
        dent.data.load("imagefolder-32", root=tmp_path)


def test_images_have_224_or_288_pixels_depending_on_the_name(tmp_path: Path) -> None:
    lay_images(tmp_path)
    assert opened(tmp_path, "imagefolder").batch([0])[0].shape == (1, 3, 224, 224)
    assert opened(tmp_path, "imagefolder-288").batch([0])[0].shape == (1, 3, 288, 288)


def folder_of_sizes(root: Path, *sizes: tuple[int, int]) -> Path:
    for name in CLASSES:
        (root / name).mkdir(parents=True)
    for index, size in enumerate(sizes):
        Image.new("RGB", size).save(root / CLASSES[index % len(CLASSES)] / f"{index}.png")
    return root


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("imagefolder", "imagefolder enlarges small images to 224 × 224: of 6 images"),
        ("imagefolder-s64", "imagefolder-s64 enlarges small images to 64 × 64: of 6 images"),
        ("imagefolder-288", "imagefolder-288 pads with black small images to 288 × 288: of 6"),
    ],
)
def test_a_folder_of_small_images_warns_and_names_what_keeps_their_size(
    tmp_path: Path, name: str, text: str
) -> None:
    folder_of_sizes(tmp_path, (40, 32), (300, 300), (300, 300), (33, 34), (300, 300), (50, 900))
    with pytest.warns(SmallImagesWarning) as caught:
        opened(tmp_path, name)
    (warning,) = (each for each in caught if each.category is SmallImagesWarning)
    assert text in str(warning.message)
    assert "checked, 3 are smaller" in str(warning.message)
    assert "0.png: 40 × 32)" in str(warning.message)
    kept = str(warning.message).rpartition(" ")[2]
    assert opened(tmp_path, kept).batch([0])[0].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("name", ["imagefolder", "imagefolder-c32", "imagefolder-s32"])
def test_a_folder_does_not_warn_if_few_images_are_small(tmp_path: Path, name: str) -> None:
    folder_of_sizes(tmp_path, (224, 224), (300, 300), (300, 300), (224, 900), (300, 300), (31, 40))
    with warnings.catch_warnings():
        warnings.simplefilter("error", SmallImagesWarning)
        opened(tmp_path, name)


def test_a_file_that_is_no_image_does_not_hide_the_warning_of_small_images(tmp_path: Path) -> None:
    folder_of_sizes(tmp_path, *[(32, 32)] * 6)
    (tmp_path / CLASSES[0] / "0.png").write_bytes(b"no image")
    with pytest.warns(SmallImagesWarning, match="of 5 images checked, 5 are smaller"):
        opened(tmp_path, "imagefolder")


def test_fetch_reports_the_path_and_the_digest(tmp_path: Path) -> None:
    lay_images(tmp_path / "val")
    found = dent.data.fetch(NAME, root=tmp_path)
    assert (found.name, found.path, found.source) == (NAME, tmp_path / "val", "folder")
    assert found.digest == opened(tmp_path).digest


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    lines = (Path(image_folder.__file__).parent / "bundled" / "imagenet-classes.txt").read_text()
    for line in lines.splitlines():
        folder = tmp_path / "imagenet" / "val" / line.split()[0]
        folder.mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(folder / "ILSVRC2012_val_00000001.bmp")
    return tmp_path


def test_imagenet_classes_are_in_the_standard_order(imagenet: Path) -> None:
    ours = opened(imagenet, "imagenet-r4-c2")
    assert len(ours.classes) == 1000
    assert [ours.classes[at] for at in (0, 1, 207, 999)] == [
        "tench",
        "goldfish",
        "golden retriever",
        "toilet tissue",
    ]
    assert ours.labels_of([0, 999]) == [0, 999]
    assert ours.batch([0])[0].shape == (1, 3, 2, 2)
    for root in (imagenet / "imagenet", imagenet / "imagenet" / "val"):
        assert opened(root, "imagenet-r4-c2").digest == ours.digest


def test_imagenet_with_missing_or_unknown_classes_is_refused(imagenet: Path) -> None:
    shutil.rmtree(imagenet / "imagenet" / "val" / "n01440764")
    (imagenet / "imagenet" / "val" / "n99999999").mkdir()
    with pytest.raises(
        DataError, match=r"1 are missing: n01440764; 1 are unknown: n99999999.*imagefolder"
    ):
        opened(imagenet, "imagenet")


def test_error_for_missing_imagenet_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val/CLASS/IMAGE\.jpg.*get it from its authors"):
        dent.data.load("imagenet", root=tmp_path)
    for other in ("digests", "cifar-10-batches-py"):  # of other datasets in the default folder
        (tmp_path / other).mkdir()
        with pytest.raises(DataError, match=r"val/CLASS/IMAGE\.jpg.*get it from its authors"):
            dent.data.load("imagenet", root=tmp_path)


def test_writing_to_a_batch_does_not_change_the_dataset(folder: Path) -> None:
    ours = opened(folder)
    images, labels = ours.batch([0])
    images.zero_()
    labels.fill_(9)
    again, label = ours.batch([0])
    assert int(label) == 0
    assert float(again.max()) > 0
    assert np.all(ours.labels[:3] == 0)


def ramp(bits: int = 16) -> np.ndarray[Any, Any]:
    """Return a gradient from black to white in 64 levels, as values of the given bit depth."""
    eight = np.tile(np.arange(0, 256, 4), (40, 1))
    return np.asarray(eight * (2**bits - 1) // 255)


def as_eight_bits(folder: Path) -> torch.Tensor:
    picture = folder / "boat" / "0.png"
    Image.fromarray(ramp(8).astype(np.uint8)).save(picture)
    return opened(folder).batch([3])[0]


def deep(path: Path) -> None:
    """Write the gradient with 16 bits per pixel, in the format of the suffix."""
    values = ramp().astype(np.uint16)
    if path.suffix == ".pgm":
        path.write_bytes(b"P5 64 40 65535\n" + values.astype(">u2").tobytes())
    elif path.name.endswith("white.tif"):  # WhiteIsZero
        Image.fromarray(65535 - values).save(path, tiffinfo={262: 0})
    else:
        Image.fromarray(values).save(path)


@pytest.mark.parametrize("name", ["0.png", "0.pgm", "0.tif", "0.white.tif"])
def test_a_16_bit_image_gives_the_same_pixels_as_its_8_bit_version(folder: Path, name: str) -> None:
    expected = as_eight_bits(folder)
    (folder / "boat" / "0.png").unlink()
    deep(folder / "boat" / name)
    assert torch.equal(opened(folder).batch([3])[0], expected)


def test_a_12_bit_pgm_differs_from_its_8_bit_version_by_at_most_one_level(folder: Path) -> None:
    expected = as_eight_bits(folder)
    (folder / "boat" / "0.png").unlink()
    content = b"P5 64 40 4095\n" + ramp(12).astype(">u2").tobytes()
    (folder / "boat" / "0.pgm").write_bytes(content)
    assert float((opened(folder).batch([3])[0] - expected).abs().max()) <= 1.001 / 255


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.int16])
def test_images_with_an_unknown_white_level_are_refused(folder: Path, kind: type) -> None:
    (folder / "boat" / "0.png").unlink()
    if kind is np.int16:
        image = Image.fromarray(ramp(15).astype(np.int32))
        image.save(folder / "boat" / "0.tif", tiffinfo={339: 2})
    else:
        Image.fromarray(ramp().astype(kind)).save(folder / "boat" / "0.tif")
    with pytest.raises(DataError, match=r"boat/0\.tif is not taken: .*unknown white level"):
        opened(folder).batch([3])


def test_a_16_bit_color_image_gives_the_same_pixels_as_its_8_bit_version(folder: Path) -> None:
    """Pillow reads the upper byte of each value, so black stays black and white stays white."""
    content = b"P6 64 40 65535\n" + ramp().astype(">u2").repeat(3, axis=1).tobytes()
    expected = as_eight_bits(folder)
    (folder / "boat" / "0.png").unlink()
    (folder / "boat" / "0.ppm").write_bytes(content)
    assert torch.equal(opened(folder).batch([3])[0], expected)


@pytest.mark.parametrize("target", ["..", ".", "../boat", "../../images", "/"])
def test_a_symlink_into_the_dataset_or_above_it_is_not_followed(folder: Path, target: str) -> None:
    before = opened(folder)
    (folder / "cat" / "deep").mkdir()
    for where in (folder / "cat", folder / "cat" / "deep"):
        to = where / target if target != "/" else Path("/")
        (where / "link").symlink_to(os.path.relpath(to, where) if target != "/" else to)
    if target == "../boat":
        (folder / "cat" / "deep" / "link").unlink()
    with pytest.warns(DataWarning, match=r"not followed.*cat/(deep/)?link"):
        after = opened(folder)
    assert after.digest == before.digest


def test_a_symlink_to_a_folder_elsewhere_is_followed_only_once(
    folder: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    picture(50).save(elsewhere / "x.png")
    (elsewhere / "back").symlink_to(folder / "cat")
    (elsewhere / "self").symlink_to(".")
    (folder / "cat" / "more").symlink_to(elsewhere)
    with pytest.warns(DataWarning, match="2 links"):
        assert len(opened(folder)) == 10


def test_class_folders_may_be_symlinks(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for each in CLASSES:
        (linked / each).symlink_to(folder / each)
    assert opened(linked).digest == opened(folder).digest


@pytest.mark.parametrize("target", ["cat", ".", ".."])
def test_a_class_folder_that_links_into_the_dataset_or_above_is_refused(
    folder: Path, target: str
) -> None:
    (folder / "all").symlink_to(target)
    with pytest.raises(DataError, match=r"images/all is a link to .*two labels: delete the link"):
        opened(folder)
