"""The gradient ladder: one defense, seen through different gradients.

A rung is a *view*: something that answers a batch with logits, whose graph gives the gradient.
With a(x) what the defense adapted to x, f(x, a) its prediction, and s its static base:

    transfer        s(x)                               answers for the static base
    stop-gradient   f(x, sg[a(x)])                     the paper's: through the final forward only
    bpda            s(x) + sg[f(x, a(x)) − s(x)]       Athalye et al., ICML 2018
    fewer-steps     f(x, a′(x)), a′ of fewer steps     answers for a weaker defense
    truncated       f(x, a(x)) through the last steps alone
    unrolled        f(x, a(x))                         exact

where sg[·] counts as constant. BPDA passes forward through the defense and backward through its
static base at the same input: the loss is that of the defense's answer, its Jacobian the base's. So
it gets through what masks gradients in front of the base.

`transfer` and `fewer-steps` are stand-ins: they answer otherwise than the defense, which is then
served what broke them (Croce et al., ICML 2022). The other rungs answer what is served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from dent.attacks.adaptive.capabilities import (
    adapt_accepts,
    adapt_with,
    static_base,
    with_fewer_steps,
)
from dent.attacks.protocol import Defense, DynamicDefense
from dent.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from dent.attacks.querier import View

RungName = Literal["transfer", "stop-gradient", "bpda", "fewer-steps", "truncated", "unrolled"]
RUNGS: tuple[RungName, ...] = get_args(RungName)
"""Cheap ones first."""
STAND_INS: tuple[RungName, ...] = ("transfer", "fewer-steps")


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder.

    Attributes:
        name: Which.
        steps: Of `fewer-steps` how many are left, by default a quarter; of `truncated` how many
            are looked through, by default 1.

    Raises:
        ConfigError: There is no such rung, or it has no use for `steps`.
    """

    name: RungName
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.name not in RUNGS:
            raise ConfigError(f"rung must be one of {', '.join(RUNGS)}, got {self.name!r}")
        if self.steps is None:
            return
        if self.name not in ("fewer-steps", "truncated"):
            raise ConfigError(f"{self.name} has no steps; fewer-steps and truncated have")
        if self.steps < (1 if self.name == "fewer-steps" else 0):
            raise ConfigError(f"steps of {self.name} are too few, got {self.steps}")

    @property
    def stands_in(self) -> bool:
        """Whether it answers for a model other than the defense."""
        return self.name in STAND_INS

    def view(self, defense: Defense) -> View:
        """Look at a defense from this rung. A plain module adapts nothing: all rungs are itself.

        Raises:
            Unavailable: The defense does not offer what the rung needs.
        """
        if not isinstance(defense, DynamicDefense):
            return defense
        return _VIEWS[self.name](defense, self.steps)


def _transfer(defense: DynamicDefense, steps: int | None) -> View:
    del steps
    return static_base(defense)


def _stop_gradient(defense: DynamicDefense, steps: int | None = None) -> View:
    del steps
    return lambda x: defense.predict(x, defense.adapt(x.detach()))


def _bpda(defense: DynamicDefense, steps: int | None) -> View:
    del steps
    base = static_base(defense)

    def view(x: Tensor) -> Tensor:
        logits: Tensor = base(x)
        detached = x.detach()
        return logits + (defense.predict(detached, defense.adapt(detached)) - logits).detach()

    return view


def _fewer_steps(defense: DynamicDefense, steps: int | None) -> View:
    weaker = with_fewer_steps(defense, steps)
    return (_unrolled if adapt_accepts(weaker, "differentiable") else _stop_gradient)(weaker)


def _truncated(defense: DynamicDefense, steps: int | None) -> View:
    return _through_steps(defense, last=1 if steps is None else steps)


def _unrolled(defense: DynamicDefense, steps: int | None = None) -> View:
    del steps
    return _through_steps(defense)


def _through_steps(defense: DynamicDefense, **how: Any) -> View:
    adapt = adapt_with(defense, "differentiable", *how)
    if adapt_accepts(defense, "checkpointed"):
        how["checkpointed"] = True
    return lambda x: defense.predict(x, adapt(x, differentiable=True, **how))


_VIEWS: dict[RungName, Callable[[DynamicDefense, int | None], View]] = {
    "transfer": _transfer,
    "stop-gradient": _stop_gradient,
    "bpda": _bpda,
    "fewer-steps": _fewer_steps,
    "truncated": _truncated,
    "unrolled": _unrolled,
}
