"""Devices, precision and processes through accelerate; the rest of training is plain PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

import torch

from dent.errors import ConfigError, SlowPrecisionWarning
from dent.support.devices import emulation_of_bfloat16, multiplies_in_bfloat16
from dent.support.extras import require
from dent.support.warned import warn

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
Precision = Literal["auto", "no", "bf16", "fp16"]


def accelerator(device: str | None = None, precision: Precision = "auto") -> Accelerator:
    """Return accelerate's handle on devices, precision and processes.

    Args:
        device: "cpu" avoids the GPU; None uses what accelerate finds (one GPU, or every GPU that
            `accelerate launch` has started a process for).
        precision: "auto" is bf16 if the hardware computes in it, else float32 ("no").

    Raises:
        MissingExtraError: accelerate is not installed.
        ConfigError: the device or precision cannot be used here.
    """
    accelerate = require("accelerate", "training", extra="train")
    cpu = device == "cpu" or not torch.cuda.is_available()
    if device not in (None, "cpu") and not (str(device).startswith("cuda") and not cpu):
        raise ConfigError(f"device {device!r} cannot be used here: leave it out, or name cpu.")
    if ":" in str(device) and str(device) != f"cuda:{torch.cuda.current_device()}":
        raise ConfigError(
            f"device {device!r} cannot be chosen here: leave it out, and choose a GPU by "
            "CUDA_VISIBLE_DEVICES."
        )
    kind = "cpu" if cpu else "cuda"
    emulated = emulation_of_bfloat16(kind)
    if precision == "auto":
        precision = "bf16" if multiplies_in_bfloat16(kind) else "no"
    elif precision == "bf16" and emulated is not None:
        warn(f"{emulated} Train with precision='auto'.", SlowPrecisionWarning)
    if precision == "fp16" and cpu:
        raise ConfigError("precision 'fp16' cannot be used here: it needs a GPU. Take auto or no.")
    # Each process keeps its own statistics. A broadcast between the two forward passes of a TRADES
    # step would overwrite values that the gradient of the first pass needs.
    kwargs = accelerate.DistributedDataParallelKwargs(broadcast_buffers=False)
    try:
        instance: Accelerator = accelerate.Accelerator(
            mixed_precision=precision, cpu=cpu, kwargs_handlers=[kwargs]
        )
    except ValueError as error:
        raise ConfigError(f"precision {precision!r} cannot be used here: {error}") from error
    return instance


def share(values: list[T]) -> list[T]:
    """Return the main process's values in every process."""
    from accelerate.utils import broadcast_object_list  # noqa: PLC0415 - an extra

    shared: list[T] = broadcast_object_list(values)
    return shared


def gather(value: T) -> list[T]:
    """Return the values of all processes, in their order."""
    from accelerate.utils import gather_object  # noqa: PLC0415 - an extra

    gathered: list[T] = gather_object([value])
    return gathered
