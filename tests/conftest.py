"""Fixtures that several test modules share."""

import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file
from torch import nn

from tests.small_models import make_tiny_cnn

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The same examples at every run, and no judgment by the clock.
settings.register_profile("dent", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("dent")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_cnn() -> nn.Sequential:
    model = make_tiny_cnn()
    model.load_state_dict(load_file(Path(__file__).parent / "golden" / "tiny_cnn.safetensors"))
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    """16 CIFAR-10 test images."""
    return load_file(Path(__file__).parent / "golden" / "golden.safetensors")["inputs"]
