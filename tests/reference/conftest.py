"""A small model and a batch in float64, so that rounding does not decide a sign."""

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def small() -> nn.Sequential:
    """A float64 model with BatchNorm and dropout, for images (N, 2, 4, 4) and 3 classes."""
    generator = torch.Generator().manual_seed(5)
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        norm,
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(64, 3),
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=generator)
        norm.weight.uniform_(0.5, 1.5, generator=generator)
        running = dict(norm.named_buffers())
        running["running_mean"].normal_(0, 0.1, generator=generator)
        running["running_var"].uniform_(0.5, 1.5, generator=generator)
    return model.eval()


@pytest.fixture
def batch() -> Tensor:
    """5 images for `small`, with some pixels at 0 and at 1."""
    generator = torch.Generator().manual_seed(6)
    x = torch.rand(5, 2, 4, 4, generator=generator, dtype=torch.float64)
    return (x * 1.4 - 0.2).clamp(0, 1)
