"""Dropped images: resized with a note, or refused in one sentence."""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from torchvision.transforms import v2

from dent import InputError
from dent.playground import Setup, bundled, dropped, images, play
from dent.playground.images import FIRST, MOST_BYTES, gallery
from dent.playground.setup import usual_threat
from dent.playground.verdict import verdict


def saved(path: Path, width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(path)
    return image


def test_image_of_the_models_size_is_unchanged(tmp_path: Path) -> None:
    image = saved(tmp_path / "a.png", 32, 32)
    picked = dropped(tmp_path / "a.png")
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert torch.equal(picked.pixels, expected)
    assert (picked.label, picked.note, picked.position) == (None, "", None)


@pytest.mark.parametrize(("width", "height"), [(100, 60), (45, 200), (20, 20)])
def test_image_of_another_size_is_resized_and_cropped_with_a_note(
    tmp_path: Path, width: int, height: int
) -> None:
    image = saved(tmp_path / "a.webp", width, height)
    image = Image.open(tmp_path / "a.webp")
    picked = dropped(tmp_path / "a.webp")
    torchvision = v2.Compose([v2.Resize(32), v2.CenterCrop(32), v2.PILToTensor()])
    assert torch.equal(picked.pixels, torchvision(image) / 255)
    assert f"{width} × {height} pixels" in picked.note
    assert ("cut" in picked.note) == (width != height)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 32), "black")
    image.paste("white", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[274] = 6  # rotate clockwise: the left side becomes the top
    image.save(tmp_path / "a.jpg", exif=exif)
    picked = dropped(tmp_path / "a.jpg")
    assert "32 × 64" in picked.note
    assert float(picked.pixels[:, :14].min()) > 0.9
    assert float(picked.pixels[:, 18:].max()) < 0.1


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_grayscale_alpha_and_palette_images_become_three_channels(
    tmp_path: Path, mode: str
) -> None:
    saved(tmp_path / "a.png", 32, 32, mode)
    assert dropped(str(tmp_path / "a.png")).pixels.shape == (3, 32, 32)


def test_unreadable_and_too_large_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    whole = BytesIO()
    saved(tmp_path / "a.png", 64, 64).save(whole, "png")
    (tmp_path / "torn.png").write_bytes(whole.getvalue()[:3000])
    (tmp_path / "page.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    for missing in (tmp_path / "none.png", str(tmp_path)):
        with pytest.raises(InputError, match=r"there is no file .*: check the path"):
            dropped(missing)
    for name in ("text.png", "torn.png", "page.svg"):
        with pytest.raises(InputError, match=rf"^{name} could not be read as an image"):
            dropped(tmp_path / name)
    (tmp_path / "big.png").write_bytes(bytes(MOST_BYTES + 1))
    with pytest.raises(InputError, match=r"10\.0 MB; the page takes up to 10 MB"):
        dropped(tmp_path / "big.png")
    Image.new("1", (8000, 6000)).save(tmp_path / "wide.png")
    with pytest.raises(InputError, match=r"wide\.png.*8000 × 6000 pixels; the page takes up to 40"):
        dropped(tmp_path / "wide.png")


@pytest.mark.parametrize(("width", "height"), [(1, 1_300_000), (1_300_000, 1)])
def test_an_image_of_extreme_proportions_is_refused_before_it_is_resized(
    tmp_path: Path, width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (width, height)).save(tmp_path / "line.png")
    assert (tmp_path / "line.png").stat().st_size < 10_000
    monkeypatch.setattr(Image.Image, "resize", lambda *_: pytest.fail("it was resized"))
    with pytest.raises(InputError, match=rf"line\.png is not taken: .*{width} × {height} pixels"):
        dropped(tmp_path / "line.png")


def test_postscript_named_png_is_refused_without_ghostscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript"))
    Image.new("RGB", (32, 32)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png could not be read as an image"):
        dropped(tmp_path / "a.png")


def test_unexpected_decoder_error_becomes_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise struct.error("unpack requires a buffer")

    saved(tmp_path / "a.png", 40, 40)
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(InputError, match=r"a\.png could not be read as an image"):
        dropped(tmp_path / "a.png")


def test_default_attack_breaks_the_static_model_and_dent_on_the_first_image() -> None:
    """Model, attack, eps and batch are the initial values of the controls."""
    setup = Setup(usual_threat("resnet-14-2-linf"), rungs=("transfer",))
    assert FIRST in gallery(images(), 4)
    outcome = play(setup, bundled(images(), FIRST))
    assert outcome.natural.static.right
    assert outcome.natural.defense.right
    assert [each.found_by for each in outcome.breaks("static")] == ["static"]
    assert list(outcome.breaks("defense"))
    assert verdict(outcome).headline == "Both fall: static and dent+"


def test_gallery_has_four_images_of_every_class() -> None:
    labels = [bundled(images(), place).label for place in gallery(images(), 4)]
    assert labels == [label for label in range(10) for _ in range(4)]
