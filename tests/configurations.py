"""Configurations that together cover every code path of the defense."""

from dataclasses import replace

import pytest
from torch import Tensor, nn

from dent.config import DENT, DENT_NOMINAL, DENT_PLUS, DentConfig

BATCH = replace(DENT, steps=3)
SAMPLE = replace(DENT_PLUS, steps=3)
ALONE = DentConfig(steps=3, lr=0.1, optimizer="sgd", granularity="sample", reduction="sum")
TEST = replace(DENT_NOMINAL, steps=3)
STATIC = DentConfig(steps=0)
STATISTICS_ONLY = DentConfig(steps=0, statistics="test")
LAST = replace(BATCH, last_layers=1)
CONFIGS = [
    pytest.param(BATCH, id="batch"),
    pytest.param(SAMPLE, id="sample"),
    pytest.param(ALONE, id="alone"),
    pytest.param(TEST, id="test-statistics"),
    pytest.param(LAST, id="last-layer"),
]


class Around(nn.Module):
    """Base class of wrappers: calls the wrapped model. Subclasses override `forward`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits
