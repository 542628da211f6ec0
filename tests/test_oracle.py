"""Slow, obviously right implementations that the defense must agree with."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dent import Dent, DentConfig, SmoothingConfig
from dent.smoothing import smooth

LAYERS = {
    "batch": lambda: nn.BatchNorm2d(4),
    "batch without affine": lambda: nn.BatchNorm2d(4, affine=False),
    "synchronized": lambda: nn.SyncBatchNorm(4),
    "group": lambda: nn.GroupNorm(2, 4),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance with statistics": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "layer": lambda: nn.LayerNorm([4, 5, 5]),
    "layer without bias": lambda: nn.LayerNorm([4, 5, 5], bias=False),
    "rms": lambda: nn.RMSNorm([4, 5, 5]),
}


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        LAYERS[kind](),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(100, 5),
    ).double()
    model.train()(torch.randn(32, 3, 5, 5, dtype=torch.float64))  # running statistics of its own
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm) and layer.weight is not None:
            nn.init.normal_(layer.weight, 1.0, 0.3)
            nn.init.normal_(layer.bias, 0.0, 0.3)
    return model.eval()


def batch(n: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 5, 5, dtype=torch.float64, generator=generator)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(sorted(LAYERS)),
    n=st.integers(1, 6),
    optimizer=st.sampled_from(["adam", "adamod", "sgd"]),
    covariance=st.sampled_from([None, "spherical", "diagonal", "full"]),
    steps=st.integers(0, 3),
)
def test_sample_wise_sum_is_each_sample_alone(
    kind: str, n: int, optimizer: str, covariance: str | None, steps: int
) -> None:
    config = DentConfig.from_dict(
        {
            "steps": steps,
            "lr": 0.05,
            "optimizer": optimizer,
            "beta3": 0.6 if optimizer == "adamod" else None,
            "granularity": "sample",
            "reduction": "sum",
            "smoothing": covariance and {"sigma": 0.7, "covariance": covariance},
        }
    )
    assert not config.batch_dependent
    defense = Dent(network(kind), config)
    x = batch(n)
    alone = torch.cat([defense(sample) for sample in x.split(1)])
    torch.testing.assert_close(defense(x), alone, rtol=1e-9, atol=1e-9)


def by_hand(model: nn.Module, x: Tensor, steps: int, *, test_statistics: bool) -> Tensor:
    """Batch-wise dent with real parameters, torch.optim and backward()."""
    model = deepcopy(model).requires_grad_(requires_grad=False)
    parameters = []
    for layer in model.modules():
        if isinstance(
            layer,
            nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm,
        ):
            parameters += list(layer.requires_grad_(requires_grad=True).parameters())
        if isinstance(layer, nn.modules.batchnorm._NormBase) and test_statistics:
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = None
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(steps):
        logits = model(x)
        loss = torch.distributions.Categorical(logits=logits).entropy().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model(x).detach()


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("statistics", ["train", "test"])
def test_batch_wise_is_tent_by_hand(kind: str, statistics: str) -> None:
    model, x = network(kind), batch(5)
    config = DentConfig.from_dict({"steps": 4, "lr": 0.05, "statistics": statistics})
    expected = by_hand(model, x, 4, test_statistics=statistics == "test")
    torch.testing.assert_close(Dent(model, config)(x), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("covariance", ["spherical", "diagonal", "full"])
def test_sigma_can_fall_to_the_identity(covariance: str) -> None:
    """Where sharp images are the more certain ones, sigma falls, and the filter vanishes."""
    smoothing = SmoothingConfig.from_dict({"sigma": 1.0, "covariance": covariance})
    config = DentConfig(steps=20, adapt_affine=False, smoothing=smoothing)
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    class Contrast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            spread = self.norm(x).std((1, 2, 3))
            return torch.stack([10 * spread, -10 * spread], 1)

    defense = Dent(Contrast().eval(), config)
    adaptation = defense.adapt(x)
    assert adaptation.smoothing is not None
    smoothed = smooth(x, adaptation.smoothing, smoothing.covariance)
    torch.testing.assert_close(smoothed, x, rtol=0, atol=0.01)
    with defense.disabled():
        static = defense(x)
    torch.testing.assert_close(defense.predict(x, adaptation), static, rtol=0.02, atol=0.02)
