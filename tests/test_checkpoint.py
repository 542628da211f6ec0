"""Checkpointed gradients (exact, with less memory) and truncated gradients (last steps only)."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from dent import Dent, DentConfig
from dent.adaptation.unroll import recomputed
from dent.errors import ConfigError
from tests.layer_toys import KINDS, make_batch, make_toy
from tests.test_gradients import CONFIGURATIONS, MIXES, Attention, make


def gradient(defense: Dent, x: Tensor, **how: Any) -> Tensor:
    """Return the gradient of a weighted sum of the logits with respect to x."""
    leaf = x.detach().clone().requires_grad_()
    logits = defense.predict(leaf, defense.adapt(leaf, differentiable=True, **how))
    weights = torch.linspace(-1, 1, logits.numel(), dtype=x.dtype).reshape(logits.shape)
    (found,) = torch.autograd.grad((logits * weights).sum(), leaf)
    return found


def assert_same(found: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(found, expected, atol=1e-12 * scale, rtol=1e-10)


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("config", CONFIGURATIONS, ids=str)
def test_checkpointed_gradient_equals_the_exact_gradient(config: DentConfig, steps: int) -> None:
    model, x = make_toy("BatchNorm2d"), make_batch("BatchNorm2d", 3)
    defense = Dent(model, DentConfig.from_dict({**config.to_dict(), "steps": steps}))
    assert_same(gradient(defense, x, checkpointed=True), gradient(defense, x))


@pytest.mark.parametrize("granularity", ["batch", "sample"])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_gradient_is_exact_for_every_kind_of_layer(
    kind: str, granularity: str
) -> None:
    defense, x = Dent(make_toy(kind), make(granularity=granularity)), make_batch(kind, 3)
    assert_same(gradient(defense, x, checkpointed=True), gradient(defense, x))


@pytest.mark.parametrize("mix", ["multi-head", "layer"])
def test_checkpointed_gradient_is_exact_for_attention(mix: str) -> None:
    """Fused attention kernels have no second derivative."""
    defense = Dent(Attention(MIXES[mix]()).double(), make())
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    assert_same(gradient(defense, x, checkpointed=True), gradient(defense, x))


@pytest.mark.parametrize("config", CONFIGURATIONS[:2] + CONFIGURATIONS[6:8], ids=str)
def test_checkpointing_changes_neither_the_adaptation_nor_the_model(config: DentConfig) -> None:
    defense, x = Dent(make_toy("BatchNorm2d"), config), make_batch("BatchNorm2d", 3)
    leaf = x.clone().requires_grad_()
    plain = defense.adapt(leaf, differentiable=True)
    found = defense.adapt(leaf, differentiable=True, checkpointed=True)
    assert torch.equal(found.entropy, plain.entropy)
    assert torch.equal(found.status, plain.status)
    for name, value in plain.parameters.items():
        assert torch.equal(found.parameters[name], value)
    before = {name: value.clone() for name, value in defense.state_dict().items()}
    state = torch.get_rng_state()
    gradient(defense, x, checkpointed=True)
    assert all(torch.equal(value, before[name]) for name, value in defense.state_dict().items())
    assert all(parameter.grad is None for parameter in defense.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_a_discarded_step_is_discarded_again_when_it_is_recomputed(granularity: str) -> None:
    # The first or the second step overflows.
    config = make(granularity=granularity, optimizer="sgd", lr=1e308, steps=4, reduction="sum")
    model, x = make_toy("BatchNorm2d"), make_batch("BatchNorm2d", 3)
    defense = Dent(model, config)
    assert defense.adapt(x).status.ne(0).any()
    found = gradient(defense, x, checkpointed=True)
    torch.testing.assert_close(found, gradient(defense, x))
    assert found.isfinite().all()


def test_checkpointed_gradient_is_exact_beside_a_non_finite_row() -> None:
    defense, x = Dent(make_toy("BatchNorm2d"), make()), make_batch("BatchNorm2d", 3)
    x[1, 0, 0, 0] = torch.nan
    leaf = x.requires_grad_()
    kept = torch.tensor([True, False, True])
    found = []
    for checkpointed in (False, True):
        adapted = defense.adapt(leaf, differentiable=True, checkpointed=checkpointed)
        logits = defense.predict(leaf, adapted)
        found.append(torch.autograd.grad(logits[kept].square().sum(), leaf)[0])
    assert_same(found[1], found[0])


class Held:
    """A tensor that autograd saved; its size is counted until it is freed."""

    now = 0
    most = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.size = tensor.numel()
        Held.now += self.size
        Held.most = max(Held.most, Held.now)

    def __del__(self) -> None:
        Held.now -= self.size


def memory(steps: int, **how: Any) -> int:
    """Return the peak number of elements that autograd held for an exact gradient."""
    Held.now = Held.most = 0
    config = make(steps=steps, granularity="sample")
    defense, x = Dent(make_toy("BatchNorm2d"), config), make_batch("BatchNorm2d", 3)
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        gradient(defense, x, **how)
    return Held.most


def test_checkpointed_memory_grows_with_the_square_root_of_the_steps() -> None:
    plain = [memory(steps) for steps in (4, 16, 64)]
    found = [memory(steps, checkpointed=True) for steps in (4, 16, 64)]
    assert plain[2] > 14 * plain[0]
    # At most 2, 4 and 8 graphs of steps at once, and as many states.
    assert found[1] < 2.1 * found[0]
    assert found[2] < 4.2 * found[0]
    assert found[2] > 3 * found[0]
    assert found[2] < 0.25 * plain[2]


def test_truncated_gradient_is_stale_for_zero_steps_and_exact_for_all_steps() -> None:
    defense, x = Dent(make_toy("BatchNorm2d"), make()), make_batch("BatchNorm2d", 3)
    leaf = x.clone().requires_grad_()
    logits = defense(leaf)
    weights = torch.linspace(-1, 1, logits.numel(), dtype=x.dtype).reshape(logits.shape)
    (stale,) = torch.autograd.grad((logits * weights).sum(), leaf)
    assert_same(gradient(defense, x, last=0), stale)
    assert_same(gradient(defense, x, last=99), gradient(defense, x))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_truncated_gradient_treats_the_first_steps_as_constant(checkpointed: bool) -> None:
    """Without momentum, it equals that of a two-step defense that starts where they ended."""
    values = {"optimizer": "sgd", "betas": (0.0, 0.999), "lr": 0.5}
    model, x = make_toy("BatchNorm2d"), make_batch("BatchNorm2d", 3)
    moved = copy.deepcopy(model)
    first = Dent(model, make(steps=3, **values)).adapt(x)
    for name, value in first.parameters.items():
        moved.get_parameter(name).data.copy_(value)
    expected = gradient(Dent(moved, make(steps=2, **values)), x)
    defense = Dent(model, make(steps=5, **values))
    found = gradient(defense, x, last=2, checkpointed=checkpointed)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    assert (found - gradient(defense, x)).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"differentiable": True, "last": -1}, "at least 0"),
        ({"last": 2}, "need differentiable"),
        ({"checkpointed": True}, "need differentiable"),
    ],
)
def test_invalid_gradient_options_are_refused(how: dict[str, Any], match: str) -> None:
    defense = Dent(make_toy("BatchNorm2d"), make())
    with pytest.raises(ConfigError, match=match):
        defense.adapt(make_batch("BatchNorm2d", 3), **how)


def test_recomputed_runs_first_without_a_graph_and_with_one_in_the_backward() -> None:
    calls: list[bool] = []

    def run(inputs: Any, keep_graph: bool) -> list[Tensor]:
        calls.append(keep_graph)
        x, y = inputs
        return [x * y, y.square(), torch.ones(2)]

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = torch.tensor([3.0, 4.0])
    product, square, constant = recomputed(run, [x, y])
    (found,) = torch.autograd.grad((product + square + constant).sum(), x)
    assert torch.equal(found, y)
    assert calls == [False, True]


def test_checkpointed_gradient_repeats_the_callers_mixed_precision() -> None:
    x = make_batch("BatchNorm2d", 4, dtype=torch.float32)
    defense = Dent(make_toy("BatchNorm2d", dtype=torch.float32), make(steps=4))
    gradients = []
    for checkpointed in (False, True):
        images = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            adaptation = defense.adapt(images, differentiable=True, checkpointed=checkpointed)
            objective = defense.predict(images, adaptation)[:, 0].float().sum()
        gradients += torch.autograd.grad(objective, images)
    assert torch.equal(gradients[1], gradients[0])
