"""The exact gradient against finite differences; the default is the stale gradient."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dent import Dent, DentConfig, Status
from tests.layer_toys import CLASSES, KINDS, make_batch, make_toy

STEP = 1e-6  # small, because updates of Adam are strongly curved near a zero gradient


def make(**values: Any) -> DentConfig:
    adamod = values.get("optimizer") == "adamod"
    return DentConfig.from_dict({"steps": 3, "lr": 0.1, "beta3": 0.6 if adamod else None, **values})


def smoothing(covariance: str) -> dict[str, Any]:
    # Not near a multiple of 1/3, at which the radius of the filter jumps.
    return {"sigma": 0.6, "lr": 0.02, "covariance": covariance}


def slope(forward: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> float:
    """Return the directional derivative by fourth-order finite differences."""
    with torch.no_grad():
        near = forward(x + STEP * direction) - forward(x - STEP * direction)
        far = forward(x + 2 * STEP * direction) - forward(x - 2 * STEP * direction)
    return float((8 * near - far) / (12 * STEP))


def check(model: nn.Module, config: DentConfig, x: Tensor, tolerance: float = 1e-6) -> None:
    defense = Dent(model, config)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(len(x), CLASSES, dtype=x.dtype, generator=generator)
    x.requires_grad_()
    exact = defense.predict(x, defense.adapt(x, differentiable=True))
    torch.testing.assert_close(exact, defense(x), atol=1e-12, rtol=1e-12)
    (gradient,) = torch.autograd.grad((exact * weights).sum(), x)
    (stale,) = torch.autograd.grad((defense(x) * weights).sum(), x)
    missed = 0.0
    for _ in range(2):
        direction = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        expected = slope(lambda y: (defense(y) * weights).sum(), x.detach(), direction)
        found, without = ((g * direction).sum().item() for g in (gradient, stale))
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)
        missed = max(missed, abs(without - expected))
    assert missed > 10 * tolerance


CONFIGURATIONS = [
    *(
        make(granularity=granularity, optimizer=optimizer, statistics=statistics)
        for granularity, optimizer, statistics in itertools.product(
            ["batch", "sample"], ["adam", "adamod", "sgd"], ["train", "test"]
        )
    ),
    *(
        make(granularity=granularity, statistics=statistics, smoothing=smoothing(covariance))
        for granularity, statistics, covariance in itertools.product(
            ["batch", "sample"], ["train", "test"], ["spherical", "diagonal", "full"]
        )
    ),
    make(granularity="sample", objective="information-maximization", optimizer="adamod"),
    make(objective="information-maximization", reduction="sum"),
    make(granularity="sample", objective="agreement", views={"count": 4, "shift": 1}),
    make(statistics="test", smoothing=smoothing("diagonal"), views={"count": 3, "shift": 1}),
    make(adapt_affine=False, smoothing=smoothing("full")),
    make(smoothing={**smoothing("full"), "learn": False}),
]


@pytest.mark.parametrize("config", CONFIGURATIONS, ids=str)
def test_exact_gradient_matches_finite_differences_for_every_configuration(
    config: DentConfig,
) -> None:
    check(make_toy("BatchNorm2d"), config, make_batch("BatchNorm2d", 3))


@pytest.mark.parametrize("granularity", ["batch", "sample"])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_gradient_matches_finite_differences_for_every_kind_of_layer(
    kind: str, granularity: str
) -> None:
    check(make_toy(kind), make(granularity=granularity), make_batch(kind, 3))


@pytest.mark.parametrize("granularity", ["batch", "sample"])
@pytest.mark.parametrize("kind", [kind for kind, chosen in KINDS.items() if chosen.mixes])
def test_exact_gradient_matches_finite_differences_with_test_statistics(
    kind: str, granularity: str
) -> None:
    config = make(granularity=granularity, statistics="test", optimizer="sgd", lr=0.5)
    check(make_toy(kind), config, make_batch(kind, 4))


class Attention(nn.Module):
    """A pre-norm block, as in a ViT."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.mix = mix
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x + self.mix(self.norm(x))
        logits: Tensor = self.head(tokens.mean(1))
        return logits


class MultiHead(nn.MultiheadAttention):
    """Self-attention; asking for its weights disables the fused kernels."""

    def __init__(self, *, weights: bool) -> None:
        super().__init__(4, 2, batch_first=True)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        mixed, _ = super().forward(x, x, x, need_weights=self.weights)
        return mixed


def boolean_mask(h: Tensor) -> Tensor:
    mask = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(h, 2 * h, h, attn_mask=mask)


MIXES: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "multi-head": lambda: MultiHead(weights=False),
    "multi-head-weights": lambda: MultiHead(weights=True),
    "layer": lambda: nn.TransformerEncoderLayer(4, 2, 8, activation=F.gelu, batch_first=True),
    "plain": lambda: lambda h: F.scaled_dot_product_attention(h, 2 * h, h),
    "causal": lambda: lambda h: F.scaled_dot_product_attention(h, 2 * h, h, is_causal=True),
    "boolean-mask": lambda: boolean_mask,
}


def fused_attention() -> list[bool]:
    backends = torch.backends.cuda
    return [backends.flash_sdp_enabled(), backends.mem_efficient_sdp_enabled()]


@pytest.mark.parametrize("granularity", ["batch", "sample"])
@pytest.mark.parametrize("mix", MIXES)
def test_exact_gradient_matches_finite_differences_for_attention(
    mix: str, granularity: str
) -> None:
    model = Attention(MIXES[mix]()).double()
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    before = fused_attention()
    check(model, make(granularity=granularity), x)
    assert fused_attention() == before


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_default_gradient_is_the_stale_gradient_of_the_final_forward(granularity: str) -> None:
    """Oracle: a copy of the model with the adapted parameters."""
    model, x = make_toy("BatchNorm2d"), make_batch("BatchNorm2d", 3).requires_grad_()
    defense = Dent(model, make(granularity=granularity))
    adaptation = defense.adapt(x)
    (found,) = torch.autograd.grad(defense(x).square().sum(), x)
    for index in range(len(x)):
        own = copy.deepcopy(model).eval()
        for name, value in adaptation.parameters.items():
            chosen = value[index] if adaptation.sample_wise else value
            own.get_parameter(name).data.copy_(chosen)
        (expected,) = torch.autograd.grad(own(x).square().sum(), x)
        torch.testing.assert_close(found[index], expected[index], atol=1e-12, rtol=1e-10)
    assert not any(value.requires_grad for value in adaptation.parameters.values())
    assert x.grad is None


def test_only_the_input_gets_a_gradient() -> None:
    model, x = make_toy("BatchNorm2d"), make_batch("BatchNorm2d", 3).requires_grad_()
    defense = Dent(model, make())
    defense.predict(x, defense.adapt(x, differentiable=True)).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_gradient_with_a_discarded_step_is_that_of_the_static_model(granularity: str) -> None:
    """The backward through an overflow would be NaN, for the whole batch if batch-wise."""
    config = make(granularity=granularity, optimizer="sgd", lr=1e308, reduction="sum")
    model, x = make_toy("BatchNorm2d"), make_batch("BatchNorm2d", 3).requires_grad_()
    defense = Dent(model, config)
    adaptation = defense.adapt(x, differentiable=True)
    assert adaptation.status.ne(Status.ADAPTED).all()
    (found,) = torch.autograd.grad(defense.predict(x, adaptation).square().sum(), x)
    (expected,) = torch.autograd.grad(model.eval()(x).square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_a_model_that_detaches_its_input_has_no_gradient_in_it() -> None:
    class Detaching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach())  # type: ignore[no-any-return]

    toy, x = make_toy("BatchNorm2d"), make_batch("BatchNorm2d", 3).requires_grad_()
    defense = Dent(Detaching(toy).eval(), DentConfig(steps=2))
    for checkpointed in (False, True):
        adaptation = defense.adapt(x, differentiable=True, checkpointed=checkpointed)
        logits = defense.predict(x, adaptation)
        assert torch.autograd.grad(logits.sum(), x, allow_unused=True) == (None,)


def test_a_non_finite_row_does_not_change_the_gradient_of_other_rows() -> None:
    defense = Dent(make_toy("BatchNorm2d"), make())
    x = make_batch("BatchNorm2d", 3)
    x[1, 0, 0, 0] = torch.nan
    x.requires_grad_()
    kept = torch.tensor([True, False, True])
    logits = defense.predict(x, defense.adapt(x, differentiable=True))
    (found,) = torch.autograd.grad(logits[kept].square().sum(), x)
    alone = x.detach()[kept].requires_grad_()
    logits = defense.predict(alone, defense.adapt(alone, differentiable=True))
    (expected,) = torch.autograd.grad(logits.square().sum(), alone)
    torch.testing.assert_close(found[kept], expected, atol=1e-12, rtol=1e-10)
    assert torch.equal(found[1], torch.zeros_like(found[1]))


class Recomputed(nn.Module):
    """A toy whose body, with its norms, may run again in every backward pass."""

    def __init__(self, *, recomputes: bool, noise: float = 0.0) -> None:
        super().__init__()
        self.body, self.recomputes = make_toy("BatchNorm2d"), recomputes
        self.noise, self.generator = noise, torch.Generator().manual_seed(5)

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.rand(x.shape, dtype=x.dtype, generator=self.generator)
        x = x + self.noise * drawn
        if self.recomputes:
            return checkpoint(self.body, x, use_reentrant=False)  # type: ignore[no-any-return]
        return self.body(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", [{}, {"last": 2}, {"checkpointed": True}], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        make(steps=5, optimizer="sgd"),
        make(steps=5, granularity="sample"),
        make(steps=5, statistics="test"),
        make(steps=5, statistics="moving"),
        make(steps=4, granularity="sample", views={"count": 2, "shift": 1}),
    ],
    ids=str,
)
def test_exact_gradient_through_a_model_with_activation_checkpointing(
    config: DentConfig, how: dict[str, Any]
) -> None:
    x = make_batch("BatchNorm2d", 5)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(len(x), CLASSES, dtype=x.dtype, generator=generator)
    direction = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    gradients = []
    for recomputes in (False, True):
        defense = Dent(Recomputed(recomputes=recomputes), config)
        images = x.clone().requires_grad_()
        logits = defense.predict(images, defense.adapt(images, differentiable=True, **how))
        torch.testing.assert_close(logits, defense(x), atol=1e-12, rtol=1e-12)
        gradients += torch.autograd.grad((logits * weights).sum(), images)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-9, rtol=1e-9)
    if "last" not in how:
        expected = slope(lambda y: (defense(y) * weights).sum(), x, direction)
        found = (gradients[1] * direction).sum().item()
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_activation_checkpointing_does_not_repeat_the_random_numbers_of_a_model() -> None:
    x, config = make_batch("BatchNorm2d", 5), make(steps=4)
    entropies = []
    for recomputes in (False, True):
        defense = Dent(Recomputed(recomputes=recomputes, noise=0.1), config)
        images = x.clone().requires_grad_()
        entropies.append(defense.adapt(images, differentiable=True).entropy)
    torch.testing.assert_close(entropies[1], entropies[0], atol=1e-12, rtol=1e-12)
