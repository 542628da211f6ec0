"""Finite differences confirm the exact gradient, and that the default one is not it."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from dent import Dent, DentConfig
from tests.test_oracle import batch, network


class Attention(nn.Module):
    """A pre-norm attention block, as in a ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1)[:, :72].reshape(len(x), 12, 6)
        normed = self.norm(tokens)
        mixed, _ = self.attention(normed, normed, normed, need_weights=False)
        return self.head((tokens + mixed).mean(1))  # type: ignore[no-any-return]


def slope(defense: Dent, x: Tensor, direction: Tensor, weights: Tensor) -> float:
    step = 1e-7  # Adam bends sharply where a gradient is small
    with torch.no_grad():
        ahead = (defense(x + step * direction) * weights).sum()
        behind = (defense(x - step * direction) * weights).sum()
    return float((ahead - behind) / (2 * step))


def check(model: nn.Module, config: DentConfig) -> None:
    defense = Dent(model, config)
    x = batch(3).requires_grad_()
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    weights = torch.randn(3, 5, dtype=x.dtype, generator=generator)
    expected = slope(defense, x.detach(), direction, weights)

    exact = defense.predict(x, defense.adapt(x, differentiable=True))
    (gradient,) = torch.autograd.grad((exact * weights).sum(), x)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-5)

    adaptation = defense.adapt(x)
    (stale,) = torch.autograd.grad((defense(x) * weights).sum(), x)
    (held,) = torch.autograd.grad((defense.predict(x, adaptation) * weights).sum(), x)
    assert torch.equal(stale, held)
    assert not torch.allclose(stale, gradient, rtol=1e-3)


def make(granularity: str, optimizer: str, statistics: str, covariance: str | None) -> DentConfig:
    return DentConfig.from_dict(
        {
            "steps": 2,
            "lr": 0.05,
            "optimizer": optimizer,
            "beta3": 0.6 if optimizer == "adamod" else None,
            "granularity": granularity,
            "statistics": statistics,
            "objective": "information-maximization" if optimizer == "adamod" else "entropy",
            "smoothing": covariance and {"sigma": 0.6, "covariance": covariance, "lr": 0.02},
        }
    )


@pytest.mark.parametrize(
    ("granularity", "optimizer", "statistics", "covariance"),
    [
        *itertools.product(["batch", "sample"], ["adam", "adamod", "sgd"], ["train"], [None]),
        *itertools.product(
            ["batch", "sample"], ["adam"], ["train"], ["spherical", "diagonal", "full"]
        ),
        *itertools.product(["batch", "sample"], ["adam"], ["test"], [None, "spherical"]),
    ],
)
def test_configurations(
    granularity: str, optimizer: str, statistics: str, covariance: str | None
) -> None:
    check(network("batch"), make(granularity, optimizer, statistics, covariance))


@pytest.mark.parametrize("granularity", ["batch", "sample"])
@pytest.mark.parametrize("kind", ["group", "instance", "layer", "rms"])
def test_layers(granularity: str, kind: str) -> None:
    check(network(kind), make(granularity, "adam", "train", None))


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_attention(granularity: str) -> None:
    torch.manual_seed(0)
    check(Attention().double().eval(), make(granularity, "adam", "train", None))
