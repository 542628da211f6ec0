"""How fast a defense computes, apart from what it answers (`dent.config`)."""

from dataclasses import dataclass
from typing import Literal, get_args

from dent.config import check_choice

MemoryFormat = Literal["auto", "channels-last", "preserve"]
Precision = Literal["model", "bfloat16"]


@dataclass(frozen=True)
class Performance:
    """Settings that change how fast a defense computes and, but for `precision`, no number.

    "No number" is up to floating-point rounding: another memory format sums in another order.

    Attributes:
        memory_format: in which order a batch of images (N, C, H, W) lies in memory.
            "channels-last" suits the convolutions of CPUs. "preserve" takes it as it comes. "auto"
            is channels-last where the batch is on a CPU and the model has a `Conv2d`, unless its
            forward has failed on it (by `.view`, say), and "preserve" elsewhere. A forward that
            reads strides, or hands memory to code that assumes an order, needs "preserve".
        precision: "model" computes as the model does; "bfloat16" by autocast, with parameters,
            objective and optimizer in float32. It changes numbers, so run records name it.

    Raises:
        ConfigError: a value is none of these.
    """

    memory_format: MemoryFormat = "auto"
    precision: Precision = "model"

    def __post_init__(self) -> None:
        """Check every field."""
        check_choice("memory_format", self.memory_format, get_args(MemoryFormat))
        check_choice("precision", self.precision, get_args(Precision))
