"""Tests that adaptive attacks run on defenses of this package that have a gradient."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dent import DENT_PLUS, Dent, ThreatModel, ViewsConfig
from dent.attacks import make
from dent.attacks.protocol import DynamicDefense
from dent.defenses import make as make_defense

MEMO = replace(
    DENT_PLUS, steps=2, objective="entropy", views=ViewsConfig(count=3, shift=1), reduction="sum"
)
AGREEMENT = replace(MEMO, objective="agreement")
LINF = ThreatModel("linf", "16/255")
STEPLESS = {"adaptive-fewer-steps": ("tte", "mean-sparse")}
"""Attacks that need steps, and the defenses that have none."""
NOT_TRUNCATED = ("et3", "mean-sparse")


def defended(name: str, model: nn.Module) -> DynamicDefense:
    configs = {"memo": MEMO, "agreement": AGREEMENT}
    return Dent(model, configs[name]) if name in configs else make_defense(name, model)


@pytest.mark.parametrize("defense", ["tte", "et3", "mean-sparse", "memo", "agreement"])
@pytest.mark.parametrize(
    "attack",
    [
        "adaptive-transfer",
        "adaptive-stop-gradient",
        "adaptive-bpda",
        "adaptive-fewer-steps",
        "adaptive-truncated",
        "adaptive-unrolled",
        "gmsa-min",
    ],
)
def test_attack_moves_images_unless_it_is_not_available_for_the_defense(
    attack: str, defense: str, small: nn.Sequential, batch: Tensor
) -> None:
    model, x = small.float(), batch.float()
    built = defended(defense, model)
    with torch.no_grad():
        y = model(x).argmax(1)
    settings = {"rounds": 2, "unrolled": True} if attack == "gmsa-min" else {"losses": "margin"}
    result = make(attack, iterations=4, **settings)(built, x, y, LINF, seed=0)
    lacks = defense in STEPLESS.get(attack, ()) or (
        attack == "adaptive-truncated" and defense in NOT_TRUNCATED
    )
    assert any(note.startswith("not available") for note in result.notes) == lacks
    if not lacks:
        moved = (result.adversarial - x).abs().flatten(1).amax(1)
        assert bool((moved > 0).any())
        assert bool((moved <= LINF.eps + 1e-6).all())
