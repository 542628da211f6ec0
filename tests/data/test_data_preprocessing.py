"""Resize, crop and squash, compared with torchvision's transforms."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from dent.data.preprocessing import Preprocessing
from dent.errors import InputError, UnknownNameError

from .images import picture

sides = st.integers(1, 40)


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(1, 60), st.none() | sides, sides, st.booleans())
def test_resize_and_crop_match_torchvision(
    width: int, height: int, resize: int | None, crop: int, bicubic: bool
) -> None:
    how = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    steps = [Resize(resize, how)] if resize else []
    image = picture(0, width, height)
    expected = np.asarray(Compose([*steps, CenterCrop(crop)])(image))
    ours = Preprocessing(resize, crop, bicubic=bicubic)(image)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, expected)


def test_squash_matches_torchvision() -> None:
    image = picture(1, 31, 57)
    np.testing.assert_array_equal(
        Preprocessing.parse("s24")(image), np.asarray(Resize([24, 24])(image))
    )


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("224", Preprocessing(256, 224)),
        ("288", Preprocessing(None, 288)),
        ("r232-c224", Preprocessing(232, 224)),
        ("r256-c224-bicubic", Preprocessing(256, 224, bicubic=True)),
        ("c32", Preprocessing(None, 32)),
        ("s224", Preprocessing(None, None, squash=224)),
    ],
)
def test_names_are_parsed_and_survive_a_round_trip(text: str, means: Preprocessing) -> None:
    read = Preprocessing.parse(text)
    assert read == means
    assert Preprocessing.parse(str(read)) == read


@settings(max_examples=60)
@given(
    st.sampled_from(["r8-c4", "c40", "s9", "r8-c20", "s9-bicubic"]),
    st.integers(1, 60),
    st.integers(1, 60),
)
def test_images_that_need_more_pixels_than_the_limit_are_refused_first(
    text: str, width: int, height: int
) -> None:
    """The limit holds for every intermediate image that Pillow makes."""
    made: list[int] = [width * height]
    real_resize, real_new = Image.Image.resize, Image.new

    def resize(self: Image.Image, size: tuple[int, int], *rest: Any) -> Image.Image:
        made.append(size[0] * self.height)  # Pillow resizes the rows first
        made.append(size[0] * size[1])
        return real_resize(self, size, *rest)

    def new(mode: str, size: tuple[int, int], *rest: Any) -> Image.Image:
        made.append(size[0] * size[1])
        return real_new(mode, size, *rest)

    image = picture(3, width, height)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", resize)
        patch.setattr(Image, "new", new)
        Preprocessing.parse(text)(image)
        largest = max(made)
        replace(Preprocessing.parse(text), most_pixels=largest)(image)
        made.clear()
        with pytest.raises(InputError, match=f"{width} × {height} pixels.* of {largest} pixels"):
            replace(Preprocessing.parse(text), most_pixels=largest - 1)(image)
        assert made == []  # refused before anything was made


@pytest.mark.parametrize("text", ["", "32", "r224", "r256-s224", "c0", "224-bicubic", "c224-cubic"])
def test_unknown_preprocessing_names_are_refused(text: str) -> None:
    with pytest.raises(UnknownNameError, match=f"no preprocessing '{text}': expected 224, 288"):
        Preprocessing.parse(text)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_image_mode_is_converted_to_rgb(mode: str) -> None:
    image = picture(2, mode=mode)
    np.testing.assert_array_equal(
        Preprocessing.parse("s16")(image), np.asarray(image.convert("RGB").resize((16, 16), 2))
    )
