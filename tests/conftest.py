"""Fixtures that several test modules share."""

import importlib
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file
from torch import nn

from tests import on_device, pretended
from tests.small_models import make_tiny_cnn

torch.set_num_threads(1)
if on_device.DEVICE.type == "cuda":
    on_device.reproducible()
_elsewhere = ExitStack()
if on_device.DEVICE == pretended.ELSEWHERE:  # for the whole session, including imports
    _elsewhere.enter_context(pretended.pretending())
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The same examples in every run, and no time limit per example.
settings.register_profile("dent", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("dent")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU if the tests run on another device."""
    if on_device.DEVICE.type != "cuda":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs DENT_TEST_DEVICE=cuda"))


def pytest_unconfigure() -> None:
    """Stop emulating the device."""
    _elsewhere.close()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device of the tests: the CPU, or the value of DENT_TEST_DEVICE."""
    return on_device.DEVICE


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """Skip fsync, which takes a sixth of a short run and matters only if the power fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which also refuses a closed file
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_cnn(device: torch.device) -> nn.Sequential:
    model = make_tiny_cnn()
    model.load_state_dict(load_file(Path(__file__).parent / "golden" / "tiny_cnn.safetensors"))
    return model.eval().to(device)


@pytest.fixture
def images(device: torch.device) -> torch.Tensor:
    """16 CIFAR-10 test images."""
    inputs = load_file(Path(__file__).parent / "golden" / "golden.safetensors")["inputs"]
    return inputs.to(device)


@pytest.fixture
def own_precision() -> Iterator[None]:
    """Let a test choose its own precision, because accelerate keeps the first of a process."""
    state = importlib.import_module("accelerate.state").AcceleratorState
    state._reset_state()
    yield
    state._reset_state()
