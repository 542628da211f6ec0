"""Optional methods of a defense, for attacks through its adaptation.

All of it is optional and checked structurally: no defense has to inherit from anything here.
Whatever is missing raises `Unavailable`, and becomes a note in the record.

| offered | what it opens |
| --- | --- |
| `unwrap() -> nn.Module` | transfer from the static model, BPDA |
| `adapt(x, differentiable=True)` | the exact gradient ("unrolled") |
| `adapt(..., checkpointed=True)` | the same in less memory, where many steps need it |
| `adapt(..., last=k)` | the gradient through the last k steps ("truncated") |
| `adapt(..., on_step=f)` | losses of what would be predicted before every step, too |
| `adapt(..., smooth_signs=t)` | a gradient through signs, where it is not kept anyway |
| `steps` | if it is 0, attacks run in the order of the static model |
| `steps`, `with_steps(k)` | the same defense with fewer steps than are deployed |
| `with_steps(k, size=c)` | the same with steps c times as large |
| `surrogates() -> Mapping[str, nn.Module]` | other models to transfer from |
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from dent.attacks.protocol import Defense, DynamicDefense
from dent.support.plural import counted

if TYPE_CHECKING:
    from dent.adaptation.minimize import OnStep

NOT_AVAILABLE = "not available: "
"""Beginning of an attack's note if the defense does not offer what the attack needs."""


class Unavailable(Exception):  # noqa: N818 (a finding, not an error)
    """A defense does not offer what an attack needs; the message says what is missing."""


@runtime_checkable
class SupportsUnwrap(Protocol):
    """A defense with a known static classifier."""

    def unwrap(self) -> nn.Module:
        """Return the static model: images (N, C, H, W) to logits (N, classes)."""
        ...


class SupportsDifferentiableAdapt(Protocol):
    """A defense that can keep the graph from the batch to its adaptation.

    With it, `predict(x, adapt(x, differentiable=True))` must have the exact gradient in `x`, and
    must answer what a plain call answers. The keywords after it are optional.
    """

    def adapt(
        self,
        x: Tensor,
        *,
        differentiable: bool = False,
        last: int | None = None,
        checkpointed: bool = False,
        on_step: OnStep | None = None,
        smooth_signs: float | None = None,
    ) -> Any:
        """Adapt to a batch (N, C, H, W)."""
        ...


@runtime_checkable
class SupportsSteps(Protocol):
    """A defense that can run with another number of steps."""

    @property
    def steps(self) -> int:
        """The number of steps in use."""
        ...

    def with_steps(self, steps: int) -> DynamicDefense:
        """Return the same defense with this many steps. This one does not change."""
        ...


@runtime_checkable
class WrapsDefense(Protocol):
    """A defense that wraps another one, with the same optional methods."""

    @property
    def inner(self) -> DynamicDefense:
        """The wrapped defense."""
        ...

    def over(self, defense: DynamicDefense) -> DynamicDefense:
        """Return another defense, wrapped in the same way."""
        ...


def surrogates_of(defense: Defense) -> dict[str, nn.Module]:
    """Return the other classifiers available to the attack, by name.

    Each takes the same images and has the same classes. A defense, or what stands in its place,
    offers them through `surrogates()`.
    """
    offered = getattr(defense, "surrogates", None)
    if callable(offered):
        return dict(offered())
    if isinstance(defense, WrapsDefense):
        return surrogates_of(defense.inner)
    return {}


def static_base(defense: Defense) -> nn.Module:
    """Return the static classifier of a defense; a plain module is its own.

    Always in eval mode: a copy, if the classifier is not.

    Raises:
        Unavailable: The defense names none.
    """
    if not isinstance(defense, DynamicDefense):
        return defense
    if isinstance(defense, WrapsDefense):
        return static_base(defense.inner)
    if not isinstance(defense, SupportsUnwrap):
        raise Unavailable(f"{type(defense).__name__} has no unwrap() to name its static base")
    base: object = defense.unwrap()
    if not isinstance(base, nn.Module):
        raise Unavailable(f"{type(defense).__name__}.unwrap() returned {type(base).__name__}")
    if any(module.training for module in base.modules()):
        return copy.deepcopy(base).eval()
    return base


def takes_no_steps(defense: Defense) -> bool:
    """Whether a defense takes no gradient steps: a plain module, or `steps` is 0."""
    if isinstance(defense, WrapsDefense):
        return takes_no_steps(defense.inner)
    return not isinstance(defense, DynamicDefense) or getattr(defense, "steps", None) == 0


def with_fewer_steps(
    defense: DynamicDefense, steps: int | None = None, *, larger: bool = False
) -> DynamicDefense:
    """Return the defense with fewer steps.

    Args:
        defense: Any.
        steps: How many; by default a quarter of what is deployed, at least 1.
        larger: Make them so much larger that together they go as far as those deployed.

    Raises:
        Unavailable: It cannot be made, or does not have so many steps to leave out.
    """
    if isinstance(defense, WrapsDefense):
        return defense.over(with_fewer_steps(defense.inner, steps, larger=larger))
    if not isinstance(defense, SupportsSteps):
        raise Unavailable(f"{type(defense).__name__} has no steps and with_steps(k)")
    fewer = max(1, defense.steps // 4) if steps is None else steps
    if fewer >= defense.steps:
        raise Unavailable(
            f"{type(defense).__name__} takes {counted(defense.steps, 'step')}, not over {fewer}"
        )
    if not larger:
        return defense.with_steps(fewer)
    if not _accepts(defense.with_steps, "size"):
        raise Unavailable(f"{type(defense).__name__}.with_steps has no size")
    resized: Callable[..., DynamicDefense] = defense.with_steps
    return resized(fewer, size=defense.steps / fewer)


def adapt_with(defense: DynamicDefense, *keywords: str) -> Callable[..., Any]:
    """Return `defense.adapt` after checking that it accepts these keywords.

    Raises:
        Unavailable: It does not.
    """
    missing = [keyword for keyword in keywords if not adapt_accepts(defense, keyword)]
    if missing:
        raise Unavailable(f"{type(defense).__name__}.adapt has no {', '.join(missing)}")
    return defense.adapt


def adapt_accepts(defense: DynamicDefense, keyword: str) -> bool:
    """Whether `adapt` has a parameter of this name; `**kwargs` does not count."""
    if isinstance(defense, WrapsDefense):
        return adapt_accepts(defense.inner, keyword)
    return _accepts(defense.adapt, keyword)


def _accepts(method: Callable[..., Any], keyword: str) -> bool:
    try:
        return keyword in inspect.signature(method).parameters
    except (TypeError, ValueError):  # no signature, as of some extension types
        return False
