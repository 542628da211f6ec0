"""Optional methods of a defense, for attacks through its adaptation.

They are checked by their structure, so no defense has to inherit from a class in this module. A
missing method raises `Unavailable`, which becomes a note in the record.

| method | what it makes possible |
| --- | --- |
| `unwrap() -> nn.Module` | transfer attacks from the static model, BPDA |
| `adapt(x, differentiable=True)` | the exact gradient ("unrolled") |
| `adapt(..., checkpointed=True)` | the same with less memory, for many steps |
| `adapt(..., last=k)` | the gradient through the last k steps ("truncated") |
| `adapt(..., on_step=f)` | losses of the predictions before every step, too |
| `adapt(..., smooth_signs=t)` | a gradient through signs that the defense cuts otherwise |
| `steps` | if it is 0, attacks run in the order of the static model |
| `steps`, `with_steps(k)` | the same defense with fewer steps than deployed |
| `with_steps(k, size=c)` | the same with steps c times as large |
| `surrogates() -> Mapping[str, nn.Module]` | other models to transfer from |
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from dent.attacks.protocol import Defense, DynamicDefense
from dent.support.plural import counted

if TYPE_CHECKING:
    from dent.adaptation.minimize import OnStep

NOT_AVAILABLE = "not available: "
"""Prefix of an attack's note if the defense does not offer what the attack needs."""


def is_unavailable(notes: Iterable[str]) -> bool:
    """Return whether an attack noted that the defense does not offer what it needs."""
    return any(note.startswith(NOT_AVAILABLE) for note in notes)


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

    `predict(x, adapt(x, differentiable=True))` must have the exact gradient to `x`, and must equal
    the prediction of a plain call. The keywords after `differentiable` are optional.
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

    Each takes the same images and has the same classes. A defense, or an object in its place,
    offers them through `surrogates()`.
    """
    offered = getattr(defense, "surrogates", None)
    if callable(offered):
        return dict(offered())
    if isinstance(defense, WrapsDefense):
        return surrogates_of(defense.inner)
    return {}


def static_base(defense: Defense) -> nn.Module:
    """Return the static model of a defense. A plain module is its own static model.

    The static model of a dynamic defense is in eval mode: if it is not, return a copy that is.

    Raises:
        Unavailable: The defense has no `unwrap`, or it does not return a module.
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
    """Return whether a defense takes no gradient steps: it is a plain module, or `steps` is 0."""
    if isinstance(defense, WrapsDefense):
        return takes_no_steps(defense.inner)
    return not isinstance(defense, DynamicDefense) or getattr(defense, "steps", None) == 0


def with_fewer_steps(
    defense: DynamicDefense, steps: int | None = None, *, larger: bool = False
) -> DynamicDefense:
    """Return the defense with fewer steps.

    Args:
        defense: Any dynamic defense.
        steps: Number of steps; by default a quarter of the deployed number, at least 1.
        larger: Whether to make them larger, so that together they go as far as those deployed.

    Raises:
        Unavailable: The defense cannot change its steps, or does not take more than `steps`.
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
        Unavailable: It does not accept one of them.
    """
    missing = [keyword for keyword in keywords if not adapt_accepts(defense, keyword)]
    if missing:
        raise Unavailable(f"{type(defense).__name__}.adapt has no {', '.join(missing)}")
    return defense.adapt


def adapt_accepts(defense: Defense, keyword: str) -> bool:
    """Return whether `adapt` has a parameter of this name. `**kwargs` does not count."""
    if isinstance(defense, WrapsDefense):
        return adapt_accepts(defense.inner, keyword)
    if not isinstance(defense, DynamicDefense):
        return True  # a plain module in a wrapper has no steps: its gradient is exact
    return _accepts(defense.adapt, keyword)


def _accepts(method: Callable[..., Any], keyword: str) -> bool:
    try:
        return keyword in inspect.signature(method).parameters
    except (TypeError, ValueError):  # some extension types have no signature
        return False
