"""The gradient ladder: one defense with different gradients.

A rung gives a *view*: a function from a batch to logits, whose graph gives the gradient. With a(x)
the adaptation to x, f(x, a) the prediction of the defense, and s its static model:

    transfer        s(x)                               predicts with the static model
    stop-gradient   f(x, sg[a(x)])                     the paper's: through the final forward only
    bpda            s(x) + sg[f(x, a(x)) − s(x)]       Athalye et al., ICML 2018
    fewer-steps     f(x, a′(x)), a′ with fewer steps   predicts with a weaker defense; the steps may
                                                       be larger, so that together they go as far
    truncated       f(x, a(x))                         through the last steps only
    unrolled        f(x, a(x))                         exact

Here sg[·] counts as constant. BPDA goes forward through the defense and backward through its static
model at the same input: the logits are those of the defense, their Jacobian is that of the static
model. So it bypasses gradient masking in front of the static model.

`transfer` and `fewer-steps` are stand-ins: their predictions are not those of the defense, which
then gets the images that fool them (Croce et al., ICML 2022). The other rungs predict exactly what
the defense predicts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from dent.adaptation.signs import SmoothSigns, check_temperature
from dent.attacks.adaptive.capabilities import (
    adapt_accepts,
    adapt_with,
    static_base,
    with_fewer_steps,
)
from dent.attacks.protocol import Defense, DynamicDefense
from dent.errors import ConfigError
from dent.support.checks import check_counts, check_flags
from dent.support.straight_through import straight_through

if TYPE_CHECKING:
    from torch import Tensor

    from dent.adaptation.minimize import OnStep
    from dent.attacks.querier import View

RungName = Literal["transfer", "stop-gradient", "bpda", "fewer-steps", "truncated", "unrolled"]
RUNGS: tuple[RungName, ...] = get_args(RungName)
"""The rungs, in order of cost."""
STAND_INS: tuple[RungName, ...] = ("transfer", "fewer-steps")
THROUGH_STEPS: tuple[RungName, ...] = ("fewer-steps", "truncated", "unrolled")
"""The rungs whose gradient passes through steps of the adaptation."""


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder.

    Attributes:
        name: The name of the rung.
        steps: For `fewer-steps`, the number of steps that are left, by default a quarter. For
            `truncated`, the number of last steps that the gradient passes, by default 1.
        larger: For `fewer-steps`, whether to make the steps larger, so that together they go as
            far as those of the defense.
        smooth_signs: If the gradient passes through steps, it passes through their signs as
            through a tanh of this temperature (`dent.adaptation.signs`). Predictions stay the
            same. 0 leaves signs as they are.

    Raises:
        ConfigError: There is no such rung, it does not use one of the settings, or a setting is
            out of range.
    """

    name: RungName
    steps: int | None = None
    larger: bool = False
    smooth_signs: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in RUNGS:
            raise ConfigError(f"rung must be one of {', '.join(RUNGS)}, got {self.name!r}")
        check_flags(larger=self.larger)
        if self.larger and self.name != "fewer-steps":
            raise ConfigError(f"larger is for fewer-steps, got it with {self.name}")
        if self.smooth_signs != 0:
            check_temperature(self.smooth_signs)
            self._check_through("smooth_signs")
        if self.steps is None:
            return
        if self.name not in ("fewer-steps", "truncated"):
            raise ConfigError(f"{self.name} has no steps; fewer-steps and truncated have")
        check_counts(1 if self.name == "fewer-steps" else 0, steps=self.steps)

    def _check_through(self, what: str) -> None:
        if self.name not in THROUGH_STEPS:
            raise ConfigError(
                f"{what} is for gradients through steps ({', '.join(THROUGH_STEPS)}), got it with "
                f"{self.name}"
            )

    @property
    def stands_in(self) -> bool:
        """Whether the rung predicts with a model other than the defense."""
        return self.name in STAND_INS

    def view(self, defense: Defense, on_step: OnStep | None = None) -> View:
        """Return a view of a defense with this rung's gradient; a plain module is its own view.

        Args:
            defense: Any defense.
            on_step: Called in every query with a gradient, before every step that the gradient
                passes through, with the prediction at that point: logits (N, classes).

        Raises:
            Unavailable: The defense does not offer what the rung needs.
            ConfigError: There is an `on_step`, but this rung's gradient passes through no step.
        """
        if on_step is not None:
            self._check_through("on_step")
        if not isinstance(defense, DynamicDefense):
            return defense
        return _VIEWS[self.name](defense, self, on_step)


def _transfer(defense: DynamicDefense, rung: Rung, on_step: OnStep | None) -> View:
    del rung, on_step
    return static_base(defense)


def _stop_gradient(defense: DynamicDefense, rung: Rung, on_step: OnStep | None = None) -> View:
    del rung, on_step
    return lambda x: defense.predict(x, defense.adapt(x.detach()))


def _bpda(defense: DynamicDefense, rung: Rung, on_step: OnStep | None) -> View:
    del rung, on_step
    base = static_base(defense)

    def view(x: Tensor) -> Tensor:
        logits: Tensor = base(x.clone())
        detached = x.detach()
        return straight_through(defense.predict(detached, defense.adapt(detached)), logits)

    return view


def _fewer_steps(defense: DynamicDefense, rung: Rung, on_step: OnStep | None) -> View:
    weaker = with_fewer_steps(defense, rung.steps, larger=rung.larger)
    exact = adapt_accepts(weaker, "differentiable")
    return (_unrolled if exact else _stop_gradient)(weaker, rung, on_step)


def _truncated(defense: DynamicDefense, rung: Rung, on_step: OnStep | None) -> View:
    last = 1 if rung.steps is None else rung.steps
    return _through_steps(defense, rung, on_step, last=last)


def _unrolled(defense: DynamicDefense, rung: Rung, on_step: OnStep | None) -> View:
    return _through_steps(defense, rung, on_step)


def _through_steps(defense: DynamicDefense, rung: Rung, on_step: OnStep | None, **how: Any) -> View:
    if on_step is not None:
        how["on_step"] = on_step
    adapt = adapt_with(defense, "differentiable", *how)
    smooths = rung.smooth_signs > 0
    if smooths and adapt_accepts(defense, "smooth_signs"):
        how["smooth_signs"] = rung.smooth_signs
    # Checkpointing recomputes steps in the backward pass, where `SmoothSigns` is not active.
    if adapt_accepts(defense, "checkpointed") and not smooths:
        how["checkpointed"] = True

    def view(x: Tensor) -> Tensor:
        return defense.predict(x, adapt(x, differentiable=True, **how))

    return _smoothed(view, rung.smooth_signs) if smooths else view


def _smoothed(view: View, temperature: float) -> View:
    def smoothed(x: Tensor) -> Tensor:
        with SmoothSigns(temperature):
            return view(x)

    return smoothed


_VIEWS: dict[RungName, Callable[[DynamicDefense, Rung, OnStep | None], View]] = {
    "transfer": _transfer,
    "stop-gradient": _stop_gradient,
    "bpda": _bpda,
    "fewer-steps": _fewer_steps,
    "truncated": _truncated,
    "unrolled": _unrolled,
}
