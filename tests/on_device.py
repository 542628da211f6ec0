"""The device that tests compute on: the CPU, or what DENT_TEST_DEVICE names.

`DENT_TEST_DEVICE=meta` pretends one (tests/pretended.py), so that mistakes show without a GPU.
Tests that can compute on any take `DEVICE`, or the fixture of the same name.
"""

import os

import torch
from torch import Tensor

from dent.support.devices import own_generator, random_state

DEVICE = torch.empty(0, device=os.environ.get("DENT_TEST_DEVICE", "cpu")).device


def reproducible() -> None:
    """Make a GPU compute the same twice, and in all digits of float32."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def random_states() -> list[Tensor]:
    """Return where the shared generators are: the CPU's, and the device's own."""
    own = [random_state(DEVICE)] if own_generator(DEVICE) else []
    return [torch.get_rng_state(), *own]


def same_states(before: list[Tensor], after: list[Tensor]) -> bool:
    """Whether nothing was drawn in between."""
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
