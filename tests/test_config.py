"""Configurations: the paper's presets, JSON round trips, and refused values."""

import json
import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dent import (
    DENT,
    DENT_NOMINAL,
    DENT_PLUS,
    ConfigError,
    DentConfig,
    DentError,
    SmoothingConfig,
    ViewsConfig,
)

positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
decay = st.floats(min_value=0, max_value=1, exclude_max=True)
smoothings = st.builds(
    SmoothingConfig,
    sigma=positive,
    learn=st.booleans(),
    lr=positive,
    covariance=st.sampled_from(["spherical", "diagonal", "full"]),
)


VIEWS = st.builds(
    ViewsConfig,
    count=st.integers(2, 10**6),
    shift=st.integers(1, 10**6),
    flip=st.booleans(),
    predict=st.sampled_from(["logits", "probabilities"]),
)
OBJECTIVES: list[Any] = ["entropy", "information-maximization", "agreement"]


@st.composite
def configs(draw: st.DrawFn) -> DentConfig:
    optimizer: Any = draw(st.sampled_from(["adam", "adamod", "sgd"]))
    smoothing = draw(st.none() | smoothings)
    adapt_affine = draw(st.booleans())
    learns = adapt_affine or (smoothing is not None and smoothing.learn)
    views = draw(st.none() | VIEWS)
    return DentConfig(
        steps=draw(st.integers(0, 10**6)) if learns else 0,
        lr=draw(positive),
        optimizer=optimizer,
        betas=(draw(decay), draw(decay)),
        beta3=draw(decay) if optimizer == "adamod" else None,
        objective=draw(st.sampled_from(OBJECTIVES if views else OBJECTIVES[:2])),
        granularity=draw(st.sampled_from(["batch", "sample"])),
        statistics=draw(st.sampled_from(["train", "test"])),
        adapt_affine=adapt_affine,
        reduction=draw(st.sampled_from(["mean", "sum"])),
        smoothing=smoothing,
        last_layers=draw(st.none() | st.integers(1, 10**6)) if adapt_affine else None,
        views=views,
    )


@given(configs())
def test_json_round_trip(config: DentConfig) -> None:
    again = DentConfig.from_json(config.to_json())
    assert again == config
    assert hash(again) == hash(config)
    assert type(again.betas) is tuple
    assert DentConfig.from_dict(config.to_dict()) == config
    plain: object = json.loads(json.dumps(config.to_dict()))
    assert plain == config.to_dict()


@given(smoothings)
def test_smoothing_json_round_trip(config: SmoothingConfig) -> None:
    assert SmoothingConfig.from_json(config.to_json()) == config
    assert SmoothingConfig.from_dict(config.to_dict()) == config


def test_default_smoothing_is_that_of_the_nominal_preset() -> None:
    assert SmoothingConfig() == DENT_NOMINAL.smoothing
    assert DentConfig.from_dict({"smoothing": {}}).smoothing == SmoothingConfig(sigma=0.5)


def test_json_is_one_line_with_sorted_keys() -> None:
    text = DENT_NOMINAL.to_json()
    assert "\n" not in text
    assert list(json.loads(text)) == sorted(json.loads(text))


# Written out in full, so that a changed default cannot change a preset unnoticed.
PRESETS: list[tuple[DentConfig, dict[str, Any]]] = [
    (
        DENT,
        {
            "steps": 30,
            "lr": 0.001,
            "optimizer": "adam",
            "betas": [0.9, 0.999],
            "beta3": None,
            "objective": "entropy",
            "granularity": "batch",
            "statistics": "train",
            "adapt_affine": True,
            "reduction": "mean",
            "smoothing": None,
        },
    ),
    (
        DENT_PLUS,
        {
            "steps": 6,
            "lr": 0.006,
            "optimizer": "adamod",
            "betas": [0.99, 0.999],
            "beta3": 0.6,
            "objective": "information-maximization",
            "granularity": "sample",
            "statistics": "train",
            "adapt_affine": True,
            "reduction": "mean",
            "smoothing": None,
        },
    ),
    (
        DENT_NOMINAL,
        {
            "steps": 10,
            "lr": 0.001,
            "optimizer": "adam",
            "betas": [0.9, 0.999],
            "beta3": None,
            "objective": "entropy",
            "granularity": "batch",
            "statistics": "test",
            "adapt_affine": True,
            "reduction": "mean",
            "smoothing": {"sigma": 0.5, "learn": True, "lr": 0.25, "covariance": "spherical"},
        },
    ),
]


@pytest.mark.parametrize(("preset", "values"), PRESETS, ids=["dent", "dent+", "dent-nominal"])
def test_presets_have_the_values_of_the_paper(preset: DentConfig, values: dict[str, Any]) -> None:
    assert preset.to_dict() == values


def test_configurations_are_frozen_and_hashable() -> None:
    with pytest.raises(FrozenInstanceError):
        DENT.steps = 1  # type: ignore[misc]
    smoothing = SmoothingConfig(sigma=1.0)
    with pytest.raises(FrozenInstanceError):
        smoothing.sigma = 2.0  # type: ignore[misc]
    assert {DENT: 1}[DentConfig()] == 1
    assert len({DENT, DENT_PLUS, DENT_NOMINAL}) == 3


def test_equal_values_of_different_types_give_equal_configurations() -> None:
    loose = DentConfig.from_dict({"lr": 1, "betas": [0, 0.5], "smoothing": {"sigma": 1}})
    strict = DentConfig(lr=1.0, betas=(0.0, 0.5), smoothing=SmoothingConfig(sigma=1.0))
    assert loose == strict
    assert loose.to_json() == strict.to_json()
    assert hash(loose) == hash(strict)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"steps": -1}, r"steps must be a whole number, at least 0, got -1"),
    ({"steps": 1.5}, r"steps must be a whole number, at least 0, got 1\.5"),
    ({"steps": True}, r"steps must be a whole number, at least 0, got True"),
    ({"lr": 0}, r"lr must be finite, greater than 0, got 0"),
    ({"lr": -1.0}, r"lr must be finite, greater than 0, got -1\.0"),
    ({"lr": math.inf}, r"lr must be finite, greater than 0, got inf"),
    ({"lr": math.nan}, r"lr must be finite, greater than 0, got nan"),
    ({"lr": 10**400}, r"lr must be finite, greater than 0, got 10000"),
    ({"lr": "fast"}, r"lr must be a number, got 'fast'"),
    ({"lr": True}, r"lr must be a number, got True"),
    ({"optimizer": "Adam"}, r"optimizer must be one of 'adam', 'adamod', 'sgd', got 'Adam'"),
    ({"betas": 0.9}, r"betas must be two numbers in \[0, 1\), got 0\.9"),
    ({"betas": (0.9,)}, r"betas must be two numbers in \[0, 1\), got \(0\.9,\)"),
    ({"betas": (1.0, 0.9)}, r"betas\[0\] must be a number in \[0, 1\), got 1\.0"),
    ({"betas": (0.9, -0.1)}, r"betas\[1\] must be a number in \[0, 1\), got -0\.1"),
    ({"betas": (0.9, False)}, r"betas\[1\] must be a number in \[0, 1\), got False"),
    ({"betas": (0.9, math.nan)}, r"betas\[1\] must be a number in \[0, 1\), got nan"),
    ({"betas": ("0.9", 0.9)}, r"betas\[0\] must be a number in \[0, 1\), got '0\.9'"),
    ({"optimizer": "adamod"}, r"optimizer='adamod' needs beta3 in \[0, 1\)"),
    ({"optimizer": "adamod", "beta3": 1}, r"beta3 must be a number in \[0, 1\), got 1"),
    ({"beta3": 0.6}, r"beta3=0\.6 needs optimizer='adamod'.*'adam'.*Remove beta3"),
    ({"optimizer": "sgd", "beta3": 0.6}, r"beta3=0\.6 needs optimizer='adamod'.*'sgd'"),
    ({"objective": "tent"}, r"objective must be one of 'entropy', 'information-maximization'"),
    ({"granularity": "both"}, r"granularity must be one of 'batch', 'sample', got 'both'"),
    ({"statistics": ["test"]}, r"one of 'train', 'test', 'moving', got \['test'\]"),
    ({"reduction": None}, r"reduction must be one of 'mean', 'sum', got None"),
    ({"adapt_affine": 1}, r"adapt_affine must be true or false, got 1"),
    ({"smoothing": 0.5}, r"smoothing must be a SmoothingConfig or None, got 0\.5"),
    ({"smoothing": {"sigma": 0}}, r"smoothing\.sigma must be finite, greater than 0, got 0"),
    ({"smoothing": {"sigma": 1, "lr": 0}}, r"smoothing\.lr must be finite, greater than 0"),
    ({"smoothing": {"sigma": 1, "learn": "yes"}}, r"smoothing\.learn must be true or false"),
    (
        {"smoothing": {"sigma": 1, "covariance": "round"}},
        r"smoothing\.covariance must be one of 'spherical', 'diagonal', 'full', got 'round'",
    ),
    ({"smoothing": {"sigma": 1, "sigmas": 1}}, r"SmoothingConfig has no field 'sigmas'.*'sigma'"),
    ({"adapt_affine": False}, r"steps=30 has nothing to update.*Set steps=0"),
    (
        {"adapt_affine": False, "smoothing": {"sigma": 1, "learn": False}},
        r"steps=30 has nothing to update: adapt_affine is False and no smoothing is learned",
    ),
    ({"last_layers": 0}, r"last_layers must be a whole number, at least 1, got 0"),
    ({"last_layers": 1.0}, r"last_layers must be a whole number, at least 1, got 1\.0"),
    ({"last_layers": True}, r"last_layers must be a whole number, at least 1, got True"),
    (
        {"steps": 0, "adapt_affine": False, "last_layers": 2},
        r"last_layers=2 says .* adapt_affine is False\. Remove last_layers",
    ),
    ({"step": 3}, r"DentConfig has no field 'step'\. Did you mean 'steps'\?"),
    ({"temperature": 3}, r"DentConfig has no field 'temperature'\. Known: steps, lr, "),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[str(v)[:50] for v, _ in REFUSED])
def test_invalid_configurations_are_refused_with_advice(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        DentConfig.from_dict(values)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, DentError)


@pytest.mark.parametrize("text", ["{", "", "adam"])
def test_invalid_json_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected JSON"):
        DentConfig.from_json(text)


def test_a_key_that_is_there_twice_is_refused() -> None:
    for text in ('{"lr": 1, "steps": 2, "lr": 2}', '{"smoothing": {"lr": 1, "lr": 2}}'):
        with pytest.raises(ConfigError, match="the key 'lr' is there twice"):
            DentConfig.from_json(text)


@pytest.mark.parametrize("given", [{"steps": 3}, None, 3])
def test_json_that_is_no_text_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"from_json expected text, got .*: for a mapping"):
        DentConfig.from_json(given)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"adam"'])
def test_json_that_is_not_an_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a mapping"):
        DentConfig.from_json(text)


def test_last_layers_is_omitted_from_the_dict_if_it_is_none() -> None:
    assert "last_layers" not in DentConfig().to_dict()
    assert DentConfig(last_layers=3).to_dict()["last_layers"] == 3


def test_learns_is_true_if_scales_and_shifts_or_smoothing_are_learned() -> None:
    static, learned = SmoothingConfig(sigma=1.0, learn=False), SmoothingConfig(sigma=1.0)
    assert DentConfig().learns
    assert not DentConfig(steps=0, adapt_affine=False).learns
    assert not DentConfig(steps=0, adapt_affine=False, smoothing=static).learns
    assert DentConfig(adapt_affine=False, smoothing=learned).learns
