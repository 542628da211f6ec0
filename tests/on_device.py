"""The device that tests compute on: the CPU, or the value of DENT_TEST_DEVICE.

`DENT_TEST_DEVICE=meta` emulates a device (tests/pretended.py), to find device errors without a GPU.
Tests that can run on any device use `DEVICE` or the fixture `device`.
"""

import os

import torch
from torch import Tensor

from dent.support.devices import own_generator, random_state

DEVICE = torch.empty(0, device=os.environ.get("DENT_TEST_DEVICE", "cpu")).device


def reproducible() -> None:
    """Make results of a GPU deterministic, and disable TF32."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def random_states() -> list[Tensor]:
    """Return the states of the global generators: the CPU's, and the device's if it has one."""
    own = [random_state(DEVICE)] if own_generator(DEVICE) else []
    return [torch.get_rng_state(), *own]


def same_states(before: list[Tensor], after: list[Tensor]) -> bool:
    """Return whether the states are equal, so that no random number was drawn in between."""
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
