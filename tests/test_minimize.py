"""Adaptation against slow oracles: real modules, and each sample adapted separately."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dent import Dent, DentConfig, SmoothingConfig
from dent.adaptation.values import flatten, unflatten
from tests import slow_dent
from tests.layer_toys import CHANNELS, KINDS, make_batch, make_toy, randomize_norms

IMAGES = tuple(name for name, kind in KINDS.items() if kind.dims == 2 and not kind.channels_last)


@st.composite
def settings_for(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """Draw all settings except granularity, statistics, objective and reduction."""
    optimizer = draw(st.sampled_from(["adam", "adamod", "sgd"]))
    smoothing = None
    if kind in IMAGES and draw(st.booleans()):
        smoothing = SmoothingConfig(
            sigma=draw(st.sampled_from([0.3, 0.5, 1.1])),
            learn=draw(st.booleans()),
            covariance=draw(st.sampled_from(["spherical", "diagonal", "full"])),
        )
    learned = smoothing is not None and smoothing.learn
    affine = not learned or draw(st.booleans())
    return {
        "steps": draw(st.integers(1, 3)),
        "lr": draw(st.sampled_from([1e-3, 0.05])),
        "optimizer": optimizer,
        "beta3": 0.6 if optimizer == "adamod" else None,
        "adapt_affine": affine,
        "smoothing": smoothing,
        "last_layers": draw(st.sampled_from([None, 1, 2])) if affine else None,
    }


def assert_same(defense: Dent, x: Tensor, expected: slow_dent.Outcome, tolerance: float) -> None:
    found = defense.adapt(x)

    def close(mine: Tensor, other: Tensor, factor: float = 1.0) -> None:
        limit = factor * tolerance
        torch.testing.assert_close(mine.detach(), other.detach(), atol=limit, rtol=limit)

    close(defense.predict(x, found), expected.logits)
    close(defense(x), expected.logits)
    close(found.entropy, expected.entropy)
    assert set(found.parameters) == set(expected.parameters)
    for name, parameter in found.parameters.items():
        close(parameter if found.sample_wise else parameter[None], expected.parameters[name])
    assert (found.smoothing is None) == (expected.smoothing is None)
    if found.smoothing is not None and expected.smoothing is not None:
        own = found.smoothing if found.sample_wise else found.smoothing[None]
        close(own, expected.smoothing, 10)
    assert torch.equal(found.status, torch.zeros(len(x), dtype=torch.int64))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3)
@given(data=st.data(), samples=st.integers(2, 5), extent=st.integers(2, 4))
def test_batch_wise_equals_real_modules(
    kind: str, data: st.DataObject, samples: int, extent: int
) -> None:
    config = DentConfig(
        granularity="batch",
        statistics=data.draw(st.sampled_from(["train", "test"])),
        objective=data.draw(st.sampled_from(["entropy", "information-maximization"])),
        reduction=data.draw(st.sampled_from(["mean", "sum"])),
        **data.draw(settings_for(kind)),
    )
    model, x = make_toy(kind, extent), make_batch(kind, samples, extent)
    assert_same(Dent(model, config), x, slow_dent.adapt_and_predict(model, config, x), 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3)
@given(data=st.data(), samples=st.integers(1, 4), extent=st.integers(2, 3))
def test_sample_wise_equals_one_module_per_sample(
    kind: str, data: st.DataObject, samples: int, extent: int
) -> None:
    config = DentConfig(
        granularity="sample",
        objective=data.draw(st.sampled_from(["entropy", "information-maximization"])),
        reduction=data.draw(st.sampled_from(["mean", "sum"])),
        **data.draw(settings_for(kind)),
    )
    model, x = make_toy(kind, extent), make_batch(kind, samples, extent)
    assert_same(Dent(model, config), x, slow_dent.adapt_and_predict(model, config, x), 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3)
@given(
    data=st.data(),
    samples=st.integers(1, 4),
    extent=st.integers(2, 3),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_sample_wise_equals_each_sample_alone(
    kind: str, data: st.DataObject, samples: int, extent: int, dtype: torch.dtype
) -> None:
    config = DentConfig(granularity="sample", reduction="sum", **data.draw(settings_for(kind)))
    defense = Dent(make_toy(kind, extent, dtype), config)
    x = make_batch(kind, samples, extent, dtype)
    together = defense.adapt(x)
    limit = 1e-11 if dtype == torch.float64 else 2e-3
    for index, one in enumerate(x.split(1)):
        alone = defense.adapt(one)
        pairs = [
            (defense.predict(x, together)[index], defense.predict(one, alone)[0]),
            (together.entropy[:, index], alone.entropy[:, 0]),
        ]
        if dtype == torch.float64:
            pairs += [
                (value[index], alone.parameters[n][0]) for n, value in together.parameters.items()
            ]
        for mine, other in pairs:
            torch.testing.assert_close(mine, other, atol=limit, rtol=limit)


def mixture() -> nn.Module:
    """Return a model of layers with and without scale and shift, one of them used twice."""
    shared = nn.BatchNorm2d(CHANNELS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, CHANNELS, 1),
            nn.BatchNorm2d(CHANNELS, affine=False),
            nn.GroupNorm(2, CHANNELS),
            nn.GELU(),
            nn.Conv2d(CHANNELS, CHANNELS, 1),
            shared,
            nn.InstanceNorm2d(CHANNELS),
            nn.GELU(),
            shared,
            nn.Flatten(),
            nn.LayerNorm(9 * CHANNELS, elementwise_affine=False),
            nn.RMSNorm(9 * CHANNELS),
            nn.Linear(9 * CHANNELS, 3),
        )
    randomize_norms(model)
    return model.double()


@pytest.mark.parametrize(
    ("granularity", "statistics"), [("batch", "train"), ("batch", "test"), ("sample", "train")]
)
def test_a_model_with_many_kinds_of_layers_equals_real_modules(
    granularity: Any, statistics: Any
) -> None:
    config = DentConfig(steps=3, lr=0.05, granularity=granularity, statistics=statistics)
    model, x = mixture(), make_batch("BatchNorm2d", 4)
    names = {"2.weight", "2.bias", "5.weight", "5.bias", "11.weight"}
    assert set(Dent(model, config).adapt(x).parameters) == names
    assert_same(Dent(model, config), x, slow_dent.adapt_and_predict(model, config, x), 1e-9)


@pytest.mark.parametrize("kind", ["BatchNorm2d", "InstanceNorm2d-running"])
def test_sample_wise_adaptation_shares_the_test_statistics(kind: str) -> None:
    """Without steps, it equals the batch-wise defense."""
    model, x = make_toy(kind), make_batch(kind, 4)
    one, each = (
        Dent(model, DentConfig(steps=0, statistics="test", granularity=g))
        for g in ("batch", "sample")
    )
    torch.testing.assert_close(one(x), each(x), atol=1e-12, rtol=1e-12)
    config = DentConfig(steps=2, lr=0.05, statistics="test", granularity="sample")
    assert (Dent(model, config)(x) - each(x)).abs().max() > 1e-3


def test_float32_agrees_with_real_modules(tiny_cnn: nn.Module, images: Tensor) -> None:
    for granularity in ("batch", "sample"):
        config = DentConfig(steps=5, granularity=granularity)
        expected = slow_dent.adapt_and_predict(tiny_cnn, config, images)
        assert_same(Dent(tiny_cnn, config), images, expected, 1e-4)


def test_adaptation_without_steps_has_the_trained_parameters() -> None:
    model, x = make_toy("BatchNorm2d"), make_batch("BatchNorm2d", 3)
    found = Dent(model, DentConfig(steps=0)).adapt(x)
    trained = dict(model.named_parameters())
    assert found.entropy.shape == (0, 3)
    for name, parameter in found.parameters.items():
        assert torch.equal(parameter, trained[name])


@given(st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=4), st.integers(0, 3))
def test_flatten_and_unflatten_undo_each_other(shapes: list[list[int]], samples: int) -> None:
    trained = {str(i): torch.randn(shape) for i, shape in enumerate(shapes)}
    flat = flatten(trained)
    again = unflatten(flat, trained)
    assert all(torch.equal(again[name], tensor) for name, tensor in trained.items())
    rows = unflatten(flat.expand(samples, -1), trained)
    assert all(
        torch.equal(rows[name], tensor.expand(samples, *tensor.shape))
        for name, tensor in trained.items()
    )
    assert unflatten(None, trained) == {}


def test_flatten_returns_at_least_float32() -> None:
    half = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(1, dtype=torch.float16)}
    assert flatten(half).dtype == torch.float32
    assert flatten({**half, "c": torch.ones(1, dtype=torch.float64)}).dtype == torch.float64
