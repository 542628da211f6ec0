"""Settings for the speed of a defense. `dent.config` has the settings for its predictions."""

from dataclasses import dataclass
from typing import Literal, get_args

from dent.support.checks import check_choice, check_flag

MemoryFormat = Literal["auto", "channels-last", "preserve"]
Precision = Literal["model", "bfloat16"]


@dataclass(frozen=True)
class Performance:
    """Settings that change the speed of a defense but, except `precision`, not its results.

    Results may still differ by rounding, because another memory format sums in another order.

    Attributes:
        memory_format: the memory order of a batch of images (N, C, H, W). "channels-last" suits
            convolutions on CPUs. "preserve" keeps the order of the input. "auto" is channels-last
            if the batch is on a CPU and the model's convolutions are wide enough to gain from it,
            and otherwise "preserve". Each model is checked once. If it fails on channels-last
            images (for example by `.view`) or gives other logits (it reads strides, or draws random
            numbers in memory order), "auto" preserves and "channels-last" is refused.
        compile: compile the model's forward and backward by `torch.compile`, once for every model,
            configuration, batch shape and grad mode, in about ten seconds each. A model that
            changes its attributes is compiled again. If this fails (without a C++ compiler, or
            because the model cannot be compiled as a whole), a `CompileWarning` says so, and the
            defense runs uncompiled. Gradients in `x` (`predict` with a gradient, and
            `adapt(differentiable=True)`) are never compiled, because a compiled gradient cannot be
            differentiated again.
        precision: "model" keeps the model's precision; "bfloat16" uses autocast, with parameters,
            objective and optimizer in float32. It changes results, so run records name it. Hardware
            without bfloat16 instructions is slower with it; a `SlowPrecisionWarning` says so.

    Raises:
        ConfigError: a value is not one of these.
    """

    memory_format: MemoryFormat = "auto"
    compile: bool = False
    precision: Precision = "model"

    def __post_init__(self) -> None:
        """Check every field."""
        check_choice("memory_format", self.memory_format, get_args(MemoryFormat))
        check_flag("compile", self.compile)
        check_choice("precision", self.precision, get_args(Precision))
