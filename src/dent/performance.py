"""How fast a defense computes, apart from what it answers (`dent.config`)."""

from dataclasses import dataclass
from typing import Literal, get_args

from dent.config import check_choice, check_flag

MemoryFormat = Literal["auto", "channels-last", "preserve"]
Precision = Literal["model", "bfloat16"]


@dataclass(frozen=True)
class Performance:
    """Settings that change how fast a defense computes and, but for `precision`, no number.

    "No number" is up to floating-point rounding: another memory format sums in another order.

    Attributes:
        memory_format: in which order a batch of images (N, C, H, W) lies in memory.
            "channels-last" suits the convolutions of CPUs. "preserve" takes it as it comes. "auto"
            is channels-last where the batch is on a CPU and the model's convolutions are wide
            enough for the batch to gain from it, and "preserve" elsewhere. A model is asked once
            whether it answers channels-last alike, up to rounding. Where it fails (by `.view`, say)
            or does not (it reads strides, or draws random numbers in the order of memory), "auto"
            preserves and "channels-last" is refused.
        compile: compile the model's forward and backward by `torch.compile`, once for every model,
            configuration, shape of a batch and grad mode, some ten seconds each; a model that
            changes its attributes is compiled anew. Where that fails, for want of a C++ compiler or
            because the model cannot be compiled whole, a `CompileWarning` says so and the defense
            goes on without. Gradients in `x` (`predict` with a gradient, and
            `adapt(differentiable=True)`) are never compiled, since a compiled gradient cannot be
            differentiated again.
        precision: "model" computes as the model does; "bfloat16" by autocast, with parameters,
            objective and optimizer in float32. It changes numbers, so run records name it.

    Raises:
        ConfigError: a value is none of these.
    """

    memory_format: MemoryFormat = "auto"
    compile: bool = False
    precision: Precision = "model"

    def __post_init__(self) -> None:
        """Check every field."""
        check_choice("memory_format", self.memory_format, get_args(MemoryFormat))
        check_flag("compile", self.compile)
        check_choice("precision", self.precision, get_args(Precision))
