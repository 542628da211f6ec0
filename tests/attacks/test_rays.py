"""Tests of the search of RayS."""

import pytest
import torch

from dent.attacks.adaptive.rays import _Search
from dent.threat import ThreatModel
from tests.attacks.attack_toys import linear
from tests.on_device import DEVICE


@pytest.mark.parametrize(
    ("shape", "queries"), [((1, 28, 28), 2500), ((3, 5, 7), 1500), ((3, 8, 8), 1500)]
)
def test_every_try_flips_pixels_and_every_stage_flips_each_pixel_once(
    shape: tuple[int, ...], queries: int
) -> None:
    draws = torch.Generator().manual_seed(0)
    x = 0.4 + 0.2 * torch.rand(4, *shape, generator=draws).to(DEVICE)
    pixels = x[0].numel()
    model = linear(pixels=pixels)
    with torch.no_grad():
        model[1].weight /= pixels
    y = model(x).argmax(1)
    search = _Search(x, ThreatModel("linf", 1e-6), torch.zeros(4, dtype=torch.bool, device=DEVICE))
    flips = torch.zeros(4, 32, pixels, dtype=torch.int64, device=DEVICE)
    rows = torch.arange(4, device=DEVICE)
    for query in range(queries):
        if bool(search.done().all()):
            break
        tried = search._tried != search._direction
        new = ~search._bisecting
        if query:  # the first try flips nothing
            assert bool(tried.any(1)[new].all())
            flips[rows, search._stage] += tried & new.unsqueeze(1)
        search.tell(model(search.ask()).argmax(1) != y)
    for member, stage in enumerate(search._stage.tolist()):
        assert stage > 3
        assert bool((flips[member, 1:stage] == 1).all())
