"""`batch_dependent` agrees with measured dependence for every combination of options."""

import itertools
from typing import Any

import pytest
import torch

from dent import DENT, DENT_NOMINAL, DENT_PLUS, ConfigError, Dent, DentConfig
from tests.layer_toys import make_batch, make_toy

KIND = "BatchNorm2d"
OPTIONS: dict[str, list[Any]] = {
    "granularity": ["batch", "sample"],
    "objective": ["entropy", "information-maximization"],
    "reduction": ["mean", "sum"],
    "statistics": ["train", "test"],
    "adapt_affine": [True, False],
    "smoothing": [
        None,
        {"sigma": 0.7, "learn": False},
        {"sigma": 0.7, "learn": True},
        {"sigma": 0.7, "learn": True, "covariance": "diagonal"},
        {"sigma": 0.7, "learn": True, "covariance": "full"},
    ],
    "steps": [0, 2],
    "optimizer": ["adam", "adamod", "sgd"],
}
COMBINATIONS = [
    dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())
]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return make_toy(KIND)


@pytest.mark.parametrize("values", COMBINATIONS, ids=lambda v: "-".join(map(str, v.values())))
def test_declared_batch_dependence_matches_measured_dependence(
    values: dict[str, Any], model: torch.nn.Module
) -> None:
    learned = values["smoothing"] is not None and values["smoothing"]["learn"]
    if values["optimizer"] == "adamod":
        values = {**values, "beta3": 0.6}
    if learned and values["optimizer"] == "sgd":  # steps of SGD are as small as the gradient
        values = {**values, "smoothing": {**values["smoothing"], "lr": 5.0}}
    if values["steps"] and not values["adapt_affine"] and not learned:
        with pytest.raises(ConfigError, match="nothing to update"):
            DentConfig.from_dict(values)
        return
    defense = Dent(model, DentConfig.from_dict({"lr": 0.2, **values}))
    sample = make_batch(KIND, 1)
    neighbours = [make_batch(KIND, n, seed=seed) for n, seed in ((3, 5), (3, 6), (7, 7), (0, 8))]
    answers = [defense(torch.cat([sample, company]))[0] for company in neighbours]
    others, more, alone = (float((answer - answers[0]).abs().max()) for answer in answers[1:])
    assert defense.batch_dependent == defense.config.batch_dependent
    if not defense.batch_dependent:
        assert max(others, more, alone) < 1e-10
    else:
        assert max(others, more, alone) > 1e-8


def test_presets_are_batch_dependent() -> None:
    assert all(preset.batch_dependent for preset in (DENT, DENT_PLUS, DENT_NOMINAL))


def test_permuting_the_batch_permutes_the_logits(model: torch.nn.Module) -> None:
    x, order = make_batch(KIND, 5), torch.tensor([3, 0, 4, 1, 2])
    for granularity, statistics in itertools.product(["batch", "sample"], ["train", "test"]):
        values = {"steps": 2, "lr": 0.1, "granularity": granularity, "statistics": statistics}
        defense = Dent(model, DentConfig.from_dict(values))
        torch.testing.assert_close(defense(x)[order], defense(x[order]), atol=1e-9, rtol=1e-9)
