"""Checks that run once, on the first batch of a defense, before its predictions count.

A private copy must give the outputs of its model, gradients must reach what is adapted, and the
outputs must be logits. This cannot be checked without a batch, and unchecked it would fail
silently.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from dent.adaptation.adapted_model import eager
from dent.adaptation.copy_check import check_copy
from dent.adaptation.isolation import hidden_from_hooks, isolated
from dent.adaptation.memory_format import FEW_ROWS
from dent.adaptation.norm import normalizes_by_batch
from dent.adaptation.random_state import same_random_numbers
from dent.adaptation.row_orders import RowOrders
from dent.adaptation.step_check import check_statistics, check_steps
from dent.adaptation.untraced import untraced
from dent.config import DentConfig
from dent.errors import (
    NoAdaptationWarning,
    PixelRangeWarning,
    SlowPrecisionWarning,
    SmallBatchWarning,
    UnsupportedModelError,
)
from dent.performance import Performance
from dent.support.devices import emulation_of_bfloat16
from dent.support.warned import are_own_batches, warn

_LOCK: Final = threading.RLock()
"""Held while the model itself runs, so that only one thread at a time runs it."""

_LARGEST_UNSIGNED: Final = 16
_LARGEST_SIGNED: Final = 160
"""Images count as pixels from 0 to 255 if no value is below 0 and one exceeds `_LARGEST_UNSIGNED`,
or if the magnitude of one exceeds `_LARGEST_SIGNED`. Usual normalizations give no such values: by
mean and standard deviation they stay within about 3, and bytes minus their mean within 152 (Caffe).
"""
_CHANNELS: Final = (1, 3, 4)


@dataclass
class FirstBatchChecks:
    """Record of the checks that a defense has passed and of the warnings that it gave.

    Copies of the defense and its variants with other steps share it.
    """

    copied: bool = False
    stepped: bool = False
    normalized: bool = False
    warned_of_pixels: bool = False
    warned_of_one: bool = False
    warned_of_precision: bool = False
    row_orders: RowOrders = field(default_factory=RowOrders)

    def __deepcopy__(self, memo: object) -> "FirstBatchChecks":
        del memo
        return self

    def warn_of_one_sample(self, model: nn.Module, config: DentConfig, x: Tensor) -> None:
        """Warn once of a batch of one sample that is not adapted, or whose prediction is noise."""
        if self.warned_of_one or len(x) != 1 or are_own_batches():
            return
        if normalizes_by_batch(eager(model), config):
            self.warned_of_one = True
            warn(
                "A batch of one sample is normalized by its own statistics, which makes its "
                "prediction noise. Submit 32 samples or more at once, or configure "
                "statistics='train'.",
                SmallBatchWarning,
            )
        elif config.steps > 0 and config.objective == "information-maximization":
            self.warned_of_one = True
            warn(
                "A batch of one sample is not adapted, because information maximization (dent+) is "
                "constant for a single sample. Submit more samples at once.",
                NoAdaptationWarning,
            )

    def warn_of_precision(self, performance: Performance, x: Tensor) -> None:
        """Warn once if a defense should compute in bfloat16 but cannot, or only by emulation."""
        if self.warned_of_precision or performance.precision != "bfloat16":
            return
        self.warned_of_precision = True
        if x.dtype == torch.float64:
            warn(
                "Performance(precision='bfloat16') has no effect on a batch of float64, which "
                "torch.autocast leaves as it is. Convert the model and the batch to float32, or "
                "leave it out.",
                SlowPrecisionWarning,
            )
            return
        emulated = emulation_of_bfloat16(x.device.type)
        if emulated is not None:
            warn(f"{emulated} Leave Performance(precision='bfloat16') out.", SlowPrecisionWarning)

    @untraced
    def run(
        self, model: nn.Module, config: DentConfig, x: Tensor, pixels: tuple[float, float]
    ) -> None:
        """Check a defense on its first batch; return at once if that was done.

        Args:
            model: the model, which is run, and then restored to its current state.
            config: the defense; without steps, only the copy and test statistics are checked.
            x: (N, ...), finite.
            pixels: the smallest and the largest value of `x`.

        Raises:
            UnsupportedModelError: the model has no values, a private copy does not give its
                outputs, these are not logits, a gradient is cut or fails, or a registered layer is
                declared wrongly.
        """
        if not self.warned_of_pixels:
            self.warned_of_pixels = _warn_of_pixels(x, *pixels)
        if not len(x) or (self.copied and self._adapts_as_checked(config)):
            return
        with _LOCK, isolated(x, differentiable=False), hidden_from_hooks():
            model, x = eager(model), x.clone() if x.is_inference() else x.detach()
            _check_values(model)
            if not self.copied:
                self.copied = _first(check_copy, model, x)
            if self._adapts_as_checked(config):
                return
            if config.steps:
                check = partial(check_steps, config, self.row_orders)
                self.stepped = _first(check, model, x)
            else:
                self.normalized = _first(partial(check_statistics, config), model, x)

    def _adapts_as_checked(self, config: DentConfig) -> bool:
        """Return whether nothing is left to check about steps or test statistics."""
        if config.steps:
            return self.stepped
        return self.stepped or self.normalized or config.statistics != "test"


def _check_values(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise UnsupportedModelError(
                f"{name} of {type(model).__name__} is on the meta device, so it has no values: "
                "load the weights first. accelerate leaves weights there that it offloads "
                "(device_map, cpu_offload): load the whole model onto one device."
            )


def _warn_of_pixels(x: Tensor, low: float, high: float) -> bool:
    if x.dim() != 4 or x.shape[1] not in _CHANNELS or not x.numel():
        return False
    if not ((low >= 0 and high > _LARGEST_UNSIGNED) or max(-low, high) > _LARGEST_SIGNED):
        return False
    warn(
        f"Images have values from {low:g} to {high:g}, as pixels from 0 to 255 have. Most models "
        "take [0, 1] or normalized pixels: divide by 255. If the model does take such values, "
        "call warnings.filterwarnings('ignore', category=dent.PixelRangeWarning).",
        PixelRangeWarning,
    )
    return True


def _first(
    check: Callable[[nn.Module, Tensor, Callable[[], None]], bool], model: nn.Module, x: Tensor
) -> bool:
    """Run a check on a few samples, or on all if the model cannot take so few.

    Returns:
        Whether the model gave an output to check. If not, the caller's own forward pass reports
        the error.
    """
    for rows in (x[:FEW_ROWS], x):
        with same_random_numbers(model, x.device) as restore:
            if check(model, rows, restore):
                return True
    return False
