"""`Dent` as a wrapper: gradient modes, threads, `disabled`, and refused arguments."""

import copy
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dent.adaptation.random_state import global_draws
from dent.config import DENT, DENT_NOMINAL, DENT_PLUS, DentConfig, SmoothingConfig
from dent.defenses.dent import Dent
from dent.errors import ConfigError, InputError, UnknownNameError, UnsupportedModelError
from tests.configurations import ALONE, BATCH, CONFIGS, SAMPLE, TEST, Around


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_defense_adapts_in_every_gradient_mode(
    mode: Callable[[], AbstractContextManager[None]],
    config: DentConfig,
    tiny_cnn: nn.Sequential,
    x: Tensor,
) -> None:
    defense = Dent(tiny_cnn, config)
    expected = defense(x).detach()
    with mode():
        logits = defense(x)
        within = defense(x.clone())
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    torch.testing.assert_close(within, expected, rtol=0, atol=0)
    assert not logits.requires_grad


@pytest.mark.parametrize("config", CONFIGS)
def test_concurrent_threads_give_the_same_logits_as_sequential_calls(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense = Dent(tiny_cnn, config)
    batches = [x, x.flip(0) * 0.5, 1 - x, x[:3]]
    expected = [defense(batch) for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            found = list(pool.map(defense, batches))
            assert all(map(torch.equal, found, expected))


def test_disabled_gives_the_static_model_only_for_this_defense_and_thread(
    tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense, other = Dent(tiny_cnn, BATCH), Dent(tiny_cnn, BATCH)
    static, dynamic = tiny_cnn(x), defense(x)
    assert not torch.equal(static, dynamic)
    found: list[Tensor] = []
    with defense.disabled():
        with defense.disabled():
            assert torch.equal(defense(x), static)
        assert torch.equal(defense(x), static)
        assert torch.equal(other(x), dynamic)
        with other.disabled():
            assert torch.equal(other(x), static)
            assert torch.equal(defense(x), static)
        thread = threading.Thread(target=lambda: found.append(defense(x)))
        thread.start()
        thread.join()
        defense.train()
        assert torch.equal(defense(x), static)
    assert torch.equal(found[0], dynamic)
    assert torch.equal(defense(x), dynamic)
    with pytest.raises(ZeroDivisionError), defense.disabled():
        raise ZeroDivisionError
    assert torch.equal(defense(x), dynamic)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda d: d.with_steps(d.steps)])
def test_a_copy_is_disabled_where_its_original_is(
    copied: Callable[[Dent], Dent], tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense, other = Dent(tiny_cnn, BATCH), Dent(tiny_cnn, BATCH)
    static, dynamic = tiny_cnn(x), defense(x)
    before = copied(defense)
    with defense.disabled():
        with other.disabled():
            within = copied(defense)
            of_copy = copied(within)
        assert torch.equal(within(x), static)
        assert torch.equal(of_copy(x), static)
        assert torch.equal(before(x), dynamic)
        assert torch.equal(copied(before)(x), dynamic)
    assert torch.equal(within(x), dynamic)
    with defense.disabled():
        assert torch.equal(within(x), dynamic)


def test_unwrap_returns_the_wrapped_model(tiny_cnn: nn.Sequential) -> None:
    assert Dent(tiny_cnn).unwrap() is tiny_cnn


def test_default_configuration_is_dent_plus(tiny_cnn: nn.Sequential) -> None:
    assert Dent(tiny_cnn).config is DENT_PLUS


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("dent", DENT),
        ("dent+", DENT_PLUS),
        (" Dent+ ", DENT_PLUS),
        ("DENT_PLUS", DENT_PLUS),
        ("dent-plus", DENT_PLUS),
        ("DENT_NOMINAL", DENT_NOMINAL),
    ],
)
def test_a_configuration_can_be_given_by_name(
    name: str, config: DentConfig, tiny_cnn: nn.Sequential
) -> None:
    assert Dent(tiny_cnn, name).config is config


@pytest.mark.parametrize(
    ("name", "said"),
    [("dnet", "Did you mean 'dent'"), ("hedge", r"dent\.defenses\.make"), ("", "Expected one of")],
)
def test_an_unknown_configuration_name_is_refused_with_advice(
    name: str, said: str, tiny_cnn: nn.Sequential
) -> None:
    with pytest.raises(UnknownNameError, match=said):
        Dent(tiny_cnn, name)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(0, 3, 16, 16), "at least one sample"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "floating-point"),
        (torch.zeros(3), "batch of shape"),
        (torch.zeros(2, 4, 16, 16), "could not take a batch"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.float64), "float32"),
        ([[0.0]], "torch.Tensor"),
        (torch.zeros(2, 3, 16, 16).to_sparse(), r"got a torch\.sparse_coo tensor"),
        (torch.zeros(2, 3, 16, 16, device="meta"), "got a meta tensor"),
        (
            torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)], layout=torch.jagged),
            "a nested",
        ),
    ],
)
def test_invalid_batches_are_refused(
    bad: Tensor, message: str, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense = Dent(tiny_cnn, BATCH)
    with pytest.raises(InputError, match=message):
        defense(bad)
    with pytest.raises(InputError, match=message):
        defense.predict(bad, defense.adapt(x))
    with defense.disabled(), pytest.raises(InputError, match=message):
        defense(bad)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jacrev"])
def test_transforms_of_torch_func_are_refused(transform: str, tiny_cnn: nn.Sequential) -> None:
    defended = Dent(tiny_cnn)

    def call(x: Tensor) -> Tensor:
        logits = defended(x if x.ndim == 4 else x[None])
        return logits.sum() if transform == "grad" else logits

    with pytest.raises(InputError, match=r"cannot pass through a defense: use torch\.autograd"):
        getattr(torch.func, transform)(call)(torch.rand(2, 3, 16, 16))


@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_transforms_of_torch_func_over_something_else_are_refused(
    transform: str, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defended = Dent(tiny_cnn)

    def of_weights(weights: dict[str, Tensor]) -> Tensor:
        logits: Tensor = torch.func.functional_call(defended, weights, (x,))
        return logits.sum()

    def of_a_factor(factor: Tensor) -> Tensor:
        return (factor * defended(x)).sum()

    weights = {name: value.detach()[None] for name, value in defended.named_parameters()}
    if transform == "grad":
        weights = {name: value[0] for name, value in weights.items()}
    for call, given in (
        (of_weights, weights),
        (of_a_factor, torch.ones(() if transform == "grad" else (3,))),
    ):
        with pytest.raises(InputError, match=r"cannot pass through a defense: use torch\.autograd"):
            getattr(torch.func, transform)(call)(given)


@pytest.mark.parametrize("config", [SAMPLE, ALONE])
def test_a_sample_wise_adaptation_is_refused_for_a_batch_of_another_size(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense = Dent(tiny_cnn, config)
    for size in (1, 3):
        with pytest.raises(InputError, match="adapt to the very batch"):
            defense.predict(x[:size], defense.adapt(x))
        with pytest.raises(InputError, match="adapt to the very batch"):
            defense.predict(x, defense.adapt(x[:size]))
    batch_wise = Dent(tiny_cnn, BATCH)
    assert batch_wise.predict(x[:2], batch_wise.adapt(x)).shape == (2, 10)


@pytest.mark.parametrize("config", [{"steps": 3}, b"dent", None])
def test_a_configuration_of_another_type_is_refused(config: Any, tiny_cnn: nn.Sequential) -> None:
    with pytest.raises(ConfigError, match=r"expected a DentConfig, got .*from_dict"):
        Dent(tiny_cnn, config)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_defense_within_a_defense_is_refused(config: DentConfig, tiny_cnn: nn.Sequential) -> None:
    for model in (Dent(tiny_cnn, BATCH), nn.Sequential(Dent(tiny_cnn, config))):
        with pytest.raises(UnsupportedModelError, match="already contains a Dent"):
            Dent(model, config)


def test_predict_refuses_an_adaptation_of_another_defense(
    tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    """Otherwise parts of it would be ignored, and the logits would look valid."""
    other = nn.Sequential(tiny_cnn[0], tiny_cnn[1], *tiny_cnn[5:8], nn.Linear(8, 10))
    diagonal = replace(TEST, smoothing=SmoothingConfig(sigma=0.5, covariance="diagonal"))
    foreign = [Dent(other, config).adapt(x) for config in (BATCH, SAMPLE, TEST)]
    own = {config: Dent(tiny_cnn, config) for config in (BATCH, SAMPLE, TEST, diagonal)}
    for config, defense in own.items():
        others = [each.adapt(x) for key, each in own.items() if key != config]
        for adaptation in [*others, *foreign]:
            with pytest.raises(InputError, match="predict with the defense that adapted"):
                defense.predict(x, adaptation)
        with pytest.raises(InputError, match="expected an Adaptation, got NoneType"):
            defense.predict(x, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", CONFIGS)
def test_memory_layout_of_the_batch_does_not_change_the_logits(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense = Dent(tiny_cnn, config)
    strided = torch.empty(3, 5, 16, 32).transpose(0, 1)[..., ::2].copy_(x)
    assert not strided.is_contiguous()
    for same in (x.to(memory_format=torch.channels_last), strided, x.expand_as(x)):
        torch.testing.assert_close(defense(same), defense(x))
    repeated = x[:1].expand(4, -1, -1, -1)
    torch.testing.assert_close(defense(repeated), defense(repeated.clone()))


class _Noisy(Around):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))


@pytest.mark.parametrize("config", CONFIGS)
def test_with_a_random_model_predict_changes_the_random_state_but_adapt_does_not(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense = Dent(_Noisy(tiny_cnn), config)
    before = torch.get_rng_state()
    adaptation = defense.adapt(x)
    assert torch.equal(torch.get_rng_state(), before)
    first = defense.predict(x, adaptation)
    assert not torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(defense.predict(x, adaptation), first)
    torch.set_rng_state(before)
    assert torch.equal(defense.predict(x, adaptation), first)


@pytest.mark.parametrize("draw", [random.random, np.random.rand, np.random.randn])
@pytest.mark.parametrize("differentiable", [False, True])
def test_adapt_does_not_change_the_random_state_of_python_or_numpy(
    draw: Callable[[], float], differentiable: bool, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    class Draws(Around):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0.1 * float(draw())

    defense = Dent(Draws(tiny_cnn), BATCH)
    before = global_draws(x.device)
    adaptation = defense.adapt(x, differentiable=differentiable)
    assert global_draws(x.device) == before
    defense.predict(x, adaptation)
    assert global_draws(x.device) != before


def test_adapt_restores_another_kind_of_numpy_generator(tiny_cnn: nn.Sequential, x: Tensor) -> None:
    class Draws(Around):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0.1 * float(np.random.rand())  # noqa: NPY002

    own = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(3))
    try:
        before = global_draws(x.device)
        Dent(Draws(tiny_cnn), BATCH).adapt(x)
        assert global_draws(x.device) == before
    finally:
        np.random.set_bit_generator(own)


def test_with_steps_returns_a_defense_of_the_same_model_with_that_many_steps(
    tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense = Dent(tiny_cnn, SAMPLE)
    fewer = defense.with_steps(1)
    assert (defense.steps, fewer.steps) == (SAMPLE.steps, 1)
    assert fewer.unwrap() is tiny_cnn
    assert torch.equal(fewer.adapt(x).entropy, defense.adapt(x).entropy[:1])
