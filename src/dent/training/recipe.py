"""The settings of a training run: frozen, validated, with a JSON round trip."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from dent.errors import ConfigError
from dent.support.checks import check_choice, check_counts, read_number
from dent.threat import ThreatModel

Method = Literal["nominal", "adversarial", "trades", "n-fgsm"]
Schedule = Literal["cosine", "one-cycle"]


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training run, except the model, the data and the seed.

    Attributes:
        name: the recipe's name, for records.
        method: "nominal"; "adversarial" (Madry et al. 2018: cross-entropy on PGD examples);
            "trades" (Zhang et al. 2019: natural cross-entropy plus `beta` times the KL divergence
            between natural and perturbed predictions); "n-fgsm" (de Jorge et al. 2022: one step
            from a noisy start, without projection).
        epochs: passes over the training set, at least 1.
        batch_size: images per step, over all processes.
        lr: the largest learning rate of SGD.
        momentum: momentum of SGD, in [0, 1).
        nesterov: whether to use Nesterov momentum.
        weight_decay: weight decay of SGD, on all parameters.
        schedule: "cosine": half a period, constant within an epoch, as in pycls; or "one-cycle":
            linear from 0 to `lr` during `warmup`, then linear to 0, with a new rate at every step.
        warmup: the share of "one-cycle" in which the rate rises, in (0, 1).
        norm: "linf" or "l2"; None if and only if the method is nominal.
        eps: radius as text, such as "8/255".
        steps: PGD steps of the inner attack; 1 for "n-fgsm", 0 for nominal.
        step_size: length of an inner step as text, such as "2/255".
        noise: only for "n-fgsm": the start's noise is uniform in the ball of this many eps.
        beta: only for "trades": the weight of the divergence.
        ema: decay per step of an exponential average of the weights. If it is above 0, the average
            is measured and kept, otherwise the weights themselves.
        pad: black pixels added on each side before a random crop; 0 for no crop.
        flip: whether to flip images horizontally at random.
    """

    name: str
    method: Method
    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    warmup: float = 0.2
    norm: Literal["linf", "l2"] | None = None
    eps: str | None = None
    steps: int = 0
    step_size: str | None = None
    noise: float | None = None
    beta: float | None = None
    ema: float = 0.0
    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        """Check every field by itself, then all fields together.

        Raises:
            ConfigError: a value is out of range, or two contradict each other.
        """
        check_choice("method", self.method, get_args(Method))
        check_choice("schedule", self.schedule, get_args(Schedule))
        check_counts(1, epochs=self.epochs, batch_size=self.batch_size)
        check_counts(0, steps=self.steps, pad=self.pad)
        read_number("lr", self.lr, 0)
        read_number("weight_decay", self.weight_decay, 0, closed_low=True)
        for name in ("momentum", "ema"):
            read_number(name, getattr(self, name), 0, 1, closed_low=True)
        read_number("warmup", self.warmup, 0, 1)
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov needs momentum above 0: set nesterov=False, or momentum.")
        self._check_threat()

    def _check_threat(self) -> None:
        chosen = [name for name in ("norm", "eps", "step_size") if getattr(self, name) is not None]
        if self.method == "nominal":
            chosen += [name for name in ("steps", "noise", "beta") if getattr(self, name)]
            if chosen:
                raise ConfigError(
                    f"method='nominal' makes no attack, so it has no {', '.join(chosen)}: leave "
                    "them out, or choose another method."
                )
            return
        if len(chosen) < 3 or self.norm not in ("linf", "l2"):
            raise ConfigError(
                f"method={self.method!r} needs norm ('linf' or 'l2'), eps and step_size, got "
                f"norm={self.norm!r}, eps={self.eps!r}, step_size={self.step_size!r}."
            )
        if not (self.step_length > 0 and self.threat and self.threat.eps > 0):
            raise ConfigError(
                f"eps and step_size must be above 0, got {self.eps}, {self.step_size}."
            )
        if self.steps < 1 or (self.method == "n-fgsm" and self.steps != 1):
            allowed = "exactly 1 step" if self.method == "n-fgsm" else "at least 1 step"
            raise ConfigError(f"method={self.method!r} takes {allowed}, got steps={self.steps}.")
        for name, method in (("noise", "n-fgsm"), ("beta", "trades")):
            value = getattr(self, name)
            if (value is not None) != (self.method == method):
                raise ConfigError(f"{name} is only for method={method!r}, which needs it.")
            if value is not None:
                read_number(name, value, 0, closed_low=True)

    @property
    def threat(self) -> ThreatModel | None:
        """The threat model trained against; None for nominal training."""
        if self.norm is None or self.eps is None:
            return None
        return ThreatModel(self.norm, self.eps)

    @property
    def step_length(self) -> float:
        """`step_size` as a number; 0 for nominal training."""
        if self.norm is None or self.step_size is None:
            return 0.0
        return ThreatModel(self.norm, self.step_size).eps

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, counted from 0 over the whole training."""
        if self.schedule == "cosine":
            epoch = step // steps_per_epoch
            return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        total = self.epochs * steps_per_epoch
        rise = max(self.warmup * total, 1.0)
        middle = step + 0.5  # the middle of the step, so that no step has a rate of 0
        return self.lr * min(middle / rise, (total - middle) / max(total - rise, 1.0))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types; `Recipe(**fields)` reads them back."""
        return asdict(self)
