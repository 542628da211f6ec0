"""`batch_dependent` is what is measured, for every combination of options."""

import itertools
from typing import Any

import pytest
import torch

from dent import ConfigError, Dent, DentConfig
from tests.test_oracle import batch, network

COMBINATIONS = list(
    itertools.product(
        ["batch", "sample"],
        ["entropy", "information-maximization"],
        ["mean", "sum"],
        ["train", "test"],
        [True, False],
        [None, False, True],
        [0, 2],
    )
)


@pytest.mark.parametrize(
    ("granularity", "objective", "reduction", "statistics", "affine", "learn", "steps"),
    COMBINATIONS,
)
def test_declared_is_measured(
    granularity: str,
    objective: str,
    reduction: str,
    statistics: str,
    affine: bool,
    learn: bool | None,
    steps: int,
) -> None:
    values: dict[str, Any] = {
        "steps": steps,
        "lr": 0.05,
        "optimizer": "sgd",
        "granularity": granularity,
        "objective": objective,
        "reduction": reduction,
        "statistics": statistics,
        "adapt_affine": affine,
        "smoothing": None if learn is None else {"sigma": 0.7, "learn": learn, "lr": 500.0},
    }
    if steps and not affine and not learn:
        with pytest.raises(ConfigError, match="nothing to update"):
            DentConfig.from_dict(values)
        return
    config = DentConfig.from_dict(values)
    defense = Dent(network("batch"), config)
    sample = batch(1)
    answers = [
        defense(torch.cat([sample, batch(company, seed)]))[:1]
        for company, seed in ((3, 5), (3, 6), (7, 7))
    ]
    change = max(float((answer - answers[0]).abs().max()) for answer in answers)
    if config.batch_dependent:
        assert change > 1e-6
    else:
        assert change < 1e-10
