"""Differences between devices: some have no float64, and most have their own random generator."""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from dent.errors import ConfigError


@cache
def has_float64(device: torch.device) -> bool:
    """Return whether a device computes in float64; Apple's GPUs and some of Intel's do not."""
    if device.type in ("cpu", "cuda", "meta"):
        return True
    try:
        torch.ones(1, dtype=torch.float64, device=device).sum()
    except (RuntimeError, TypeError):
        return False
    return True


@cache
def multiplies_in_bfloat16(kind: str) -> bool | None:
    """Return whether the CPU, or the current CUDA device, has instructions for bfloat16.

    Without them, bfloat16 is emulated, and slower than float32.

    Args:
        kind: The type of the device.

    Returns:
        None if it is not known: for other devices, and for CPUs other than x86.
    """
    if kind == "cuda" and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu" and platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return None


def emulation_of_bfloat16(kind: str) -> str | None:
    """Return what a warning says of a device that emulates bfloat16; None if it does not.

    Args:
        kind: The type of the device.
    """
    if multiplies_in_bfloat16(kind) is not False:
        return None
    return (
        f"This {'CPU' if kind == 'cpu' else 'GPU'} has no bfloat16 instructions. It emulates them, "
        "and is slower than with float32 (10 to 20 times on a CPU with only AVX2)."
    )


def widest(device: torch.device) -> torch.dtype:
    """Return float64, or float32 for a device that has no float64."""
    return torch.float64 if has_float64(device) else torch.float32


def wide(x: Tensor) -> Tensor:
    """Return a tensor in float64, on its device, or on the CPU if its device has no float64."""
    return (x if has_float64(x.device) else x.cpu()).double()


def own_generator(device: torch.device) -> bool:
    """Return whether a device has its own random generator, other than the CPU's."""
    return device.type not in ("cpu", "meta")


def random_state(device: torch.device) -> Tensor:
    """Return the state of a device's generator."""
    state: Tensor = _module(device).get_rng_state(*_index(device))
    return state


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Set the state of a device's generator."""
    _module(device).set_rng_state(state, *_index(device))


def seed_generator(seed: int, device: torch.device) -> None:
    """Seed a device's generator."""
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    else:
        with torch.get_device_module(device.type).device(device):
            _module(device).manual_seed(seed)


def synchronize(device: torch.device) -> None:
    """Wait until all work queued on a device is done."""
    if device.type not in ("cpu", "meta"):
        _module(device).synchronize(*_index(device))


def _module(device: torch.device) -> Any:
    return torch.get_device_module(device.type)


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is only one MPS device


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model; the CPU if it has no parameter and no buffer."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def usable_device(name: str | torch.device | None) -> torch.device:
    """Return the device of that name; without a name, the GPU if there is one.

    Raises:
        ConfigError: There is no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {error}") from error
    if chosen.type == "meta":
        raise ConfigError("device 'meta' computes no values: choose cpu, cuda or another device")
    return chosen
