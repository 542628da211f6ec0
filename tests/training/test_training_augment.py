"""Random crops and flips, compared with a slow loop."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dent.training.augment import augment


@given(n=st.integers(1, 6), side=st.integers(2, 9), pad=st.integers(0, 4), flip=st.booleans())
def test_every_output_is_a_possible_crop_or_flip_of_its_image(
    n: int, side: int, pad: int, flip: bool
) -> None:
    torch.manual_seed(n * side + pad)
    x = torch.rand(n, 3, side, side + 1)
    before = x.clone()
    out = augment(x, pad=pad, flip=flip)
    assert torch.equal(x, before)
    assert out.shape == x.shape
    for image, made in zip(x, out, strict=True):
        wide = torch.zeros(3, side + 2 * pad, side + 1 + 2 * pad)
        wide[:, pad : pad + side, pad : pad + side + 1] = image
        crops = [
            wide[:, top : top + side, left : left + side + 1]
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
        ]
        candidates = crops + ([crop.flip(2) for crop in crops] if flip else [])
        assert any(torch.equal(made, crop) for crop in candidates)


def test_all_crop_positions_and_both_directions_occur() -> None:
    marked = torch.zeros(400, 1, 3, 3)
    marked[:, :, 1, 0] = 1
    torch.manual_seed(0)
    cropped = augment(marked, pad=1, flip=False)
    places = {tuple(image.flatten().nonzero().flatten().tolist()) for image in cropped}
    assert len(places) == 7  # six positions in the image, or shifted out of it
    flipped = augment(marked, pad=0, flip=True)
    assert 120 < int(flipped[:, 0, 1, 2].sum()) < 280


def test_images_are_unchanged_without_padding_and_flip() -> None:
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(augment(x, pad=0, flip=False), x)
