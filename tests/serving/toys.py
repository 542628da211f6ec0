"""A model and a defense that `dent serve` imports like those of a user."""

import time

import torch
from servers import TOGETHER, make_model
from torch import Tensor, nn

from dent import Dent


def model() -> nn.Module:
    return make_model()


class Slow(Dent):
    """A defense that sleeps half a second for every batch."""

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        time.sleep(0.5)
        return super().predict(x, adaptation)  # type: ignore[arg-type]


def defense(model: nn.Module) -> Slow:
    torch.set_num_threads(1)
    return Slow(model, TOGETHER)
