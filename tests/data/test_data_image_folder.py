"""Folders of images: listed like torchvision, read lazily, and known by a digest that holds."""

import os
import shutil
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
from dent.errors import DataError, DataWarning, InputError, UnknownNameError

from .images import CLASSES, lay_images, picture

NAME = "imagefolder-r24-c20"


def opened(root: Path, name: str = NAME, split: Any = "test") -> ImageFolderDataset:
    found = dent.data.load(name, split, root=root)
    assert isinstance(found, ImageFolderDataset)
    return found


def age(root: Path, seconds: int = 100) -> None:
    """Make every file old enough for its digest to be remembered."""
    for path in root.rglob("*"):
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - seconds * 10**9))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lay_images(tmp_path / "images", each=3)


def test_it_is_torchvisions_image_folder(folder: Path) -> None:
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


def test_only_what_is_asked_for_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_digest_tells_content_order_labels_and_size(folder: Path, tmp_path: Path) -> None:
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


def test_digests_are_remembered_until_a_file_changes(
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


def test_a_file_that_changed_a_moment_ago_is_not_remembered(folder: Path) -> None:
    opened(folder)
    assert not list(dent.data.data_root().rglob("*.sha256s"))


def test_a_remembered_digest_is_never_taken_on_trust(folder: Path) -> None:
    """Same size and time, other content: no batch is given under the old digest."""
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


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    age(folder)
    (tmp_path / "file").touch()
    monkeypatch.setenv("DENT_DATA", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="computed again next time"):
        assert len(opened(folder)) == 9


def test_a_broken_image_is_named(folder: Path) -> None:
    path = folder / "boat" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    broken = opened(folder)
    with pytest.raises(
        DataError, match=r"boat/0\.png is no intact image: .*copy it again or delete"
    ):
        broken.batch(range(9))


def test_a_file_of_another_kind_is_not_read_whatever_it_is_called(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript"))
    picture(7).save(folder / "boat" / "0.eps")
    (folder / "boat" / "0.eps").replace(folder / "boat" / "0.png")
    with pytest.raises(DataError, match=r"boat/0\.png is no intact image \(JPEG, PNG") as refused:
        opened(folder).batch([3])
    assert "object at" not in str(refused.value)


def test_an_image_of_another_suffix_is_read_all_the_same(folder: Path) -> None:
    """ImageNet has a PNG that is called .JPEG."""
    before, _ = opened(folder).batch([3])
    (folder / "boat" / "0.png").rename(folder / "boat" / "0.jpeg")
    after, _ = opened(folder).batch([3])
    assert torch.equal(before, after)


@pytest.mark.parametrize("size", [(1, 600_000), (600_000, 1)])
def test_an_image_of_extreme_proportions_is_named(folder: Path, size: tuple[int, int]) -> None:
    Image.new("L", size).save(folder / "boat" / "0.png")
    with pytest.raises(DataError, match=r"boat/0\.png is not taken: .*600000"):
        opened(folder, "imagefolder").batch([3])


def test_an_image_with_too_many_pixels_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"boat/0\.png is no intact image: .*decompression bomb"):
        opened(folder).batch([3])


def test_what_is_no_regular_file_is_named_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "boat" / "z.png")
    with pytest.raises(DataError, match=r"boat/z\.png is no regular file"):
        opened(folder)


def test_a_file_that_went_away_is_named(folder: Path) -> None:
    ours = opened(folder)
    (folder / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match=r"cat/0\.png cannot be read"):
        ours.batch([6])


@pytest.mark.parametrize("content", [None, "notes.txt", ".hidden.png"])
def test_a_class_without_images_is_named(folder: Path, content: str | None) -> None:
    (folder / "dog").mkdir()
    if content:
        (folder / "dog" / content).touch()
    with pytest.raises(DataError, match=r"1 of 4 classes have no images: dog\. What to do"):
        opened(folder)


def test_splits_lie_side_by_side(tmp_path: Path) -> None:
    lay_images(tmp_path / "train", each=3)
    lay_images(tmp_path / "val", each=1)
    assert len(opened(tmp_path, split="train")) == 9
    assert len(opened(tmp_path)) == 3
    shutil.rmtree(tmp_path / "val" / "boat")
    with pytest.raises(DataError, match=r"different class folders.*Missing in the first: boat"):
        opened(tmp_path)


@pytest.mark.parametrize("laid", ["nothing", "one class", "train alone"])
def test_a_folder_that_is_none_says_what_is_expected(tmp_path: Path, laid: str) -> None:
    if laid == "one class":
        lay_images(tmp_path, ("cat",))
    if laid == "train alone":
        lay_images(tmp_path / "train")
    with pytest.raises(DataError, match=r"CLASS/IMAGE\.jpg"):
        opened(tmp_path)


def test_a_folder_must_be_named() -> None:
    for act in (dent.data.load, dent.data.fetch):
        with pytest.raises(DataError, match=r"imagefolder needs a folder\..*--data FOLDER"):
            act("imagefolder")


def test_names_are_written_one_way(tmp_path: Path) -> None:
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


def test_the_two_sizes_of_the_paper(tmp_path: Path) -> None:
    lay_images(tmp_path)
    assert opened(tmp_path, "imagefolder").batch([0])[0].shape == (1, 3, 224, 224)
    assert opened(tmp_path, "imagefolder-288").batch([0])[0].shape == (1, 3, 288, 288)


def test_fetch_says_where_it_lies_and_what_it_is(tmp_path: Path) -> None:
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


def test_imagenet_has_its_classes_in_their_order(imagenet: Path) -> None:
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


def test_imagenet_with_a_class_missing_or_too_many_is_refused(imagenet: Path) -> None:
    shutil.rmtree(imagenet / "imagenet" / "val" / "n01440764")
    (imagenet / "imagenet" / "val" / "n99999999").mkdir()
    with pytest.raises(
        DataError, match=r"1 are missing: n01440764; 1 are unknown: n99999999.*imagefolder"
    ):
        opened(imagenet, "imagenet")


def test_imagenet_that_is_not_there_says_where_to_lay_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val/CLASS/IMAGE\.jpg.*get it from its authors"):
        dent.data.load("imagenet", root=tmp_path)


def test_pixels_are_not_the_datasets_own(folder: Path) -> None:
    ours = opened(folder)
    images, labels = ours.batch([0])
    images.zero_()
    labels.fill_(9)
    again, label = ours.batch([0])
    assert int(label) == 0
    assert float(again.max()) > 0
    assert np.all(ours.labels[:3] == 0)


def ramp(bits: int = 16) -> np.ndarray[Any, Any]:
    """From black to white in all 8-bit values, in values of some bits."""
    eight = np.tile(np.arange(0, 256, 4), (40, 1))
    return np.asarray(eight * (2**bits - 1) // 255)


def as_eight_bits(folder: Path) -> torch.Tensor:
    picture = folder / "boat" / "0.png"
    Image.fromarray(ramp(8).astype(np.uint8)).save(picture)
    return opened(folder).batch([3])[0]


def deep(path: Path) -> None:
    """16 bits a pixel, as far as the suffix has them."""
    values = ramp().astype(np.uint16)
    if path.suffix == ".pgm":
        path.write_bytes(b"P5 64 40 65535\n" + values.astype(">u2").tobytes())
    elif path.name.endswith("white.tif"):  # WhiteIsZero
        Image.fromarray(65535 - values).save(path, tiffinfo={262: 0})
    else:
        Image.fromarray(values).save(path)


@pytest.mark.parametrize("name", ["0.png", "0.pgm", "0.tif", "0.white.tif"])
def test_sixteen_bits_are_the_same_picture_as_eight(folder: Path, name: str) -> None:
    expected = as_eight_bits(folder)
    (folder / "boat" / "0.png").unlink()
    deep(folder / "boat" / name)
    assert torch.equal(opened(folder).batch([3])[0], expected)


def test_twelve_bits_of_a_pgm_are_the_same_picture(folder: Path) -> None:
    expected = as_eight_bits(folder)
    (folder / "boat" / "0.png").unlink()
    content = b"P5 64 40 4095\n" + ramp(12).astype(">u2").tobytes()
    (folder / "boat" / "0.pgm").write_bytes(content)
    assert float((opened(folder).batch([3])[0] - expected).abs().max()) <= 1.001 / 255


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.int16])
def test_numbers_without_a_white_are_refused(folder: Path, kind: type) -> None:
    (folder / "boat" / "0.png").unlink()
    if kind is np.int16:
        image = Image.fromarray(ramp(15).astype(np.int32))
        image.save(folder / "boat" / "0.tif", tiffinfo={339: 2})
    else:
        Image.fromarray(ramp().astype(kind)).save(folder / "boat" / "0.tif")
    with pytest.raises(DataError, match=r"boat/0\.tif is not taken: .*unknown white level"):
        opened(folder).batch([3])


def test_sixteen_bits_in_colour_keep_their_range(folder: Path) -> None:
    """Pillow reads the upper byte of each: black stays black, white white."""
    content = b"P6 64 40 65535\n" + ramp().astype(">u2").repeat(3, axis=1).tobytes()
    expected = as_eight_bits(folder)
    (folder / "boat" / "0.png").unlink()
    (folder / "boat" / "0.ppm").write_bytes(content)
    assert torch.equal(opened(folder).batch([3])[0], expected)


@pytest.mark.parametrize("target", ["..", ".", "../boat", "../../images", "/"])
def test_a_link_into_the_dataset_or_above_it_is_not_followed(folder: Path, target: str) -> None:
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


def test_a_link_to_a_folder_elsewhere_is_followed_once(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    picture(50).save(elsewhere / "x.png")
    (elsewhere / "back").symlink_to(folder / "cat")
    (elsewhere / "self").symlink_to(".")
    (folder / "cat" / "more").symlink_to(elsewhere)
    with pytest.warns(DataWarning, match="2 links"):
        assert len(opened(folder)) == 10


def test_class_folders_may_be_links(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for each in CLASSES:
        (linked / each).symlink_to(folder / each)
    assert opened(linked).digest == opened(folder).digest


@pytest.mark.parametrize("target", ["cat", ".", ".."])
def test_a_class_that_is_a_link_to_another_is_refused(folder: Path, target: str) -> None:
    (folder / "all").symlink_to(target)
    with pytest.raises(DataError, match=r"images/all is a link to .*two labels: delete the link"):
        opened(folder)
