"""Recipes: the paper's settings, learning rates compared with torch's schedulers, and errors."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dent.errors import ConfigError, UnknownNameError
from dent.training import RECIPES, Recipe, named


def test_the_nominal_recipe_has_the_settings_of_the_paper() -> None:
    recipe = named("nominal")
    assert (recipe.epochs, recipe.batch_size, recipe.lr) == (200, 128, 0.1)
    assert (recipe.weight_decay, recipe.momentum, recipe.schedule) == (5e-4, 0.9, "cosine")
    assert recipe.threat is None


@pytest.mark.parametrize("method", ["adversarial", "trades"])
@pytest.mark.parametrize(("norm", "eps", "step"), [("linf", 8 / 255, 2 / 255), ("l2", 0.5, 0.1)])
def test_the_adversarial_recipes_have_the_settings_of_the_paper(
    method: str, norm: str, eps: float, step: float
) -> None:
    recipe = named(method, norm)
    assert recipe.steps == 10
    assert recipe.threat is not None
    assert (recipe.threat.norm, recipe.threat.eps) == (norm, eps)
    assert recipe.step_length == pytest.approx(step)


def test_recipes_are_found_by_family_and_by_full_name() -> None:
    assert named("fast").method == "nominal"
    assert named("fast", "l2") == RECIPES["fast-l2"]
    assert named("trades") == RECIPES["trades-linf"]
    assert named("fast-linf", epochs=2, lr=None).epochs == 2
    assert named("fast-linf", lr=None).lr == RECIPES["fast-linf"].lr


def test_every_recipe_survives_a_json_round_trip() -> None:
    for recipe in RECIPES.values():
        assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_the_cosine_schedule_matches_torch_at_every_epoch() -> None:
    recipe = named("nominal", epochs=7)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=recipe.lr)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    for epoch in range(7):
        for step in range(5):
            assert recipe.learning_rate(5 * epoch + step, 5) == pytest.approx(
                optimizer.param_groups[0]["lr"]
            )
        optimizer.step()
        oracle.step()


@given(
    epochs=st.integers(1, 20),
    per_epoch=st.integers(1, 50),
    warmup=st.floats(0.01, 0.99),
)
def test_the_one_cycle_schedule_rises_once_and_then_falls_once(
    epochs: int, per_epoch: int, warmup: float
) -> None:
    recipe = named("fast", epochs=epochs, warmup=warmup)
    rates = [recipe.learning_rate(step, per_epoch) for step in range(epochs * per_epoch)]
    assert all(0 < rate <= recipe.lr * (1 + 1e-9) for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if len(rates) > 20 and 0.2 < warmup < 0.8:
        assert max(rates) > 0.8 * recipe.lr


BAD: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 0}, "epochs must be a whole number, at least 1, got 0"),
    ({"epochs": True}, "epochs must be a whole number"),
    ({"lr": 0.0}, "lr must be finite, greater than 0, got 0.0"),
    ({"lr": float("nan")}, "lr must be finite, greater than 0, got nan"),
    ({"momentum": 1.0}, "momentum must be a number in \\[0, 1\\)"),
    ({"momentum": 0.0}, "nesterov needs momentum above 0"),
    ({"weight_decay": -1.0}, "weight_decay must be finite, at least 0, got -1.0"),
    ({"weight_decay": "1"}, "weight_decay must be a number, got '1'"),
    ({"warmup": 0.0}, "warmup must be a number in \\(0, 1\\), got 0.0"),
    ({"schedule": "step"}, "schedule must be one of 'cosine', 'one-cycle', got 'step'"),
    ({"norm": "l1"}, "needs norm \\('linf' or 'l2'\\)"),
    ({"eps": None}, "needs norm"),
    ({"eps": "0"}, "must be above 0"),
    ({"steps": 2}, "takes exactly 1 step, got steps=2"),
    ({"noise": None}, "noise is only for method='n-fgsm'"),
    ({"beta": 6.0}, "beta is only for method='trades'"),
    ({"method": "nominal"}, "makes no attack, so it has no norm, eps, step_size, steps, noise"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_invalid_recipes_are_refused(change: dict[str, Any], message: str) -> None:
    fields = RECIPES["fast-linf"].to_dict() | change
    with pytest.raises(ConfigError, match=message):
        Recipe(**fields)


def test_unknown_names_get_a_suggestion_and_conflicting_norms_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'trades'"):
        named("tradse")
    with pytest.raises(ConfigError, match="trains against linf, not against l2"):
        named("fast-linf", "l2")
    with pytest.raises(ConfigError, match="trains without an attack"):
        named("nominal", "linf")
    with pytest.raises(ConfigError, match=r"no eps, steps: add a norm \(--norm .*leave them out"):
        named("fast", eps="8/255", steps=1)
    with pytest.raises(ConfigError, match="without an attack, so it has no beta: leave it out"):
        named("nominal", beta=6.0)
