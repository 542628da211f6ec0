"""Automatic mixed precision: the caller's, to notice or repeat it later, and a defense's own."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dent.performance import Performance


class Autocast(NamedTuple):
    """The state of torch.autocast in this thread, for one type of device."""

    device_type: str
    enabled: bool
    dtype: torch.dtype | None


def autocast_of(device: torch.device) -> Autocast:
    """Return the current state of torch.autocast for a device."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        return Autocast(kind, enabled=False, dtype=None)
    return Autocast(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))


def under(autocast: Autocast, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context with an earlier state of torch.autocast; it changes nothing if that is on.

    Args:
        autocast: from `autocast_of` the same device.
        device: the device that runs.
    """
    if autocast == autocast_of(device):
        return nullcontext()
    return torch.autocast(autocast.device_type, autocast.dtype, enabled=autocast.enabled)


def autocast_for(performance: Performance, x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which a model runs on the batch `x` in the precision of a defense."""
    if performance.precision == "model":
        return nullcontext()
    return torch.autocast(x.device.type, torch.bfloat16)
