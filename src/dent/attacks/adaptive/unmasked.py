"""The gradient of a defense that hides it, without help from its author.

Two operations hide a gradient in honest code. First, an output that saturates, such as a softmax of
large logits, has a gradient of exactly zero in float32. Instead, this module reads the scores that
the output was computed from: the last ones of the same shape that have the same top class and still
have a gradient. Second, rounding has a gradient of zero, or none. Here its gradient is passed
straight through (Bengio et al. 2013). Casts to integers, divisions that round, and `x - x % step`
also round.

Both are found in the operations that PyTorch runs during a query. Comparisons, lookups such as
`bucketize`, and code that is compiled, scripted or outside of PyTorch are not seen.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dent.attacks.losses import margin
from dent.attacks.protocol import as_queried

if TYPE_CHECKING:
    from dent.attacks.querier import View

_KEPT = 64
"""Number of last scores that are considered. An adaptation before them has many more."""


def _functions(*names: str) -> frozenset[Any]:
    """Return the functions of torch and methods of tensors with these names, also in place."""
    return frozenset(
        getattr(owner, name)
        for owner in (torch, Tensor)
        for plain in names
        for name in (plain, f"{plain}_")
        if hasattr(owner, name)
    )


_ROUNDING = _functions("round", "floor", "ceil", "trunc", "fix", "sign", "sgn")
_FLOOR_DIVISIONS = _functions("floor_divide", "__floordiv__", "__ifloordiv__", "__rfloordiv__")
_DIVISIONS = _functions("div", "divide")
_REMAINDERS = _functions("remainder", "fmod", "frac", "__mod__")
_DIFFERENCES = _functions("sub", "subtract", "__sub__")
_CASTS = _functions("byte", "char", "short", "int", "long", "to", "type", "float", "half", "double")
_FAILED = (RuntimeError, TypeError, ValueError, IndexError)
"""Errors of an operation on floats that expects integers."""


class _StraightThrough(torch.autograd.Function):
    """Rounded values with the gradient of the values before rounding."""

    @staticmethod
    def forward(ctx: Any, before: Tensor, after: Tensor) -> Tensor:
        """Return a copy of `after`."""
        del ctx, before
        return after.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Pass the gradient to `before`."""
        del ctx
        return gradients[0], None


class _StraightThroughInPlace(torch.autograd.Function):
    """The same, written into the values."""

    @staticmethod
    def forward(ctx: Any, before: Tensor, after: Tensor) -> Tensor:
        """Write `after` into `before`."""
        ctx.mark_dirty(before)
        return before.copy_(after)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Pass the gradient to `before`."""
        del ctx
        return gradients[0], None


class _Watching(TorchFunctionMode):
    """A mode that keeps the last scores of a batch and passes gradients through rounding.

    Attributes:
        scores: The last two-dimensional results with a gradient and one row per member, in order.
        rounded: Whether anything with a gradient was rounded.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.scores: deque[Tensor] = deque(maxlen=_KEPT)
        self.rounded = False
        self._rows = rows
        # By the id of a tensor: the tensor, so that its id stays its own, and what it was made of.
        self._before_cast: dict[int, tuple[Tensor, Tensor]] = {}
        self._before_remainder: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        del types
        result = self._run(func, args, kwargs or {})
        if (
            isinstance(result, Tensor)
            and result.dim() == 2
            and len(result) == self._rows
            and result.requires_grad
            and result.is_floating_point()
        ):
            self.scores.append(result)
        return result

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        operand = args[0] if args and isinstance(args[0], Tensor) else None
        if any(id(argument) in self._before_cast for argument in args):
            return self._after_cast(func, args, kwargs)
        divided = _divided(func, args, kwargs)
        if divided is not None:
            self.rounded = True
            after = func(*map(_detached, args), **kwargs)
            if not _is_in_place(func):
                return _StraightThrough.apply(torch.true_divide(*divided), after)
            return _StraightThroughInPlace.apply(args[0].div_(args[1]), after)
        if operand is None or not operand.requires_grad:
            return func(*args, **kwargs)
        return self._round(func, operand, args, kwargs)

    def _round(self, func: Any, operand: Tensor, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation on a tensor with a gradient, straight through if it rounds."""
        if func in _ROUNDING:
            self.rounded = True
            in_place = _is_in_place(func) and not operand.is_leaf
            before = operand.detach().clone() if in_place else operand
            after = func(before, *args[1:], **kwargs).detach()
            through = _StraightThroughInPlace if in_place else _StraightThrough
            return through.apply(operand, after)
        _, source = self._before_remainder.get(id(args[1] if len(args) > 1 else None), (None, None))
        result = func(*args, **kwargs)
        if func in _DIFFERENCES and source is operand and not _is_in_place(func) and not kwargs:
            self.rounded = True
            return _StraightThrough.apply(operand, result.detach())
        if func in _REMAINDERS and not _is_in_place(func):
            self._before_remainder[id(result)] = result, operand
        elif _is_integer(result) and result.shape == operand.shape and func in _CASTS:
            self._before_cast[id(result)] = result, operand
        return result

    def _after_cast(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation on integers that floats with a gradient were cast to."""
        in_place = _is_in_place(func)
        floats = [self._before_cast.get(id(each), (None, each))[1] for each in args]
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or not (
            result.is_floating_point() or _is_integer(result)
        ):
            return result
        if in_place:
            floats[0] = floats[0].clone()
        try:
            smooth = floats[0] if func in _CASTS else self._run(func, floats, kwargs)
        except torch.OutOfMemoryError:
            raise
        except _FAILED:
            smooth = None
        if not isinstance(smooth, Tensor) or smooth.shape != result.shape:
            self._before_cast.pop(id(result), None)
            return result
        if _is_integer(result):
            self._before_cast[id(result)] = result, smooth
            return result
        self.rounded = True
        return _StraightThrough.apply(smooth.to(result), result.detach())


def _is_integer(value: object) -> bool:
    return isinstance(value, Tensor) and not (
        value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
    )


def _is_in_place(func: Any) -> bool:
    name = str(getattr(func, "__name__", ""))
    return name.startswith("__i") if name.endswith("__") else name.endswith("_")


def _detached(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _divided(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """Return numerator and denominator of a division that rounds something with a gradient."""
    rounds = func in _DIVISIONS and kwargs.get("rounding_mode") is not None
    if not (rounds or func in _FLOOR_DIVISIONS) or len(args) != 2:
        return None
    if not any(isinstance(each, Tensor) and each.requires_grad for each in args):
        return None
    first, second = args
    return (second, first) if func is Tensor.__rfloordiv__ else (first, second)


class Unmasked:
    """A view that returns scores with a gradient.

    Args:
        view: The original view.

    Attributes:
        helps: Whether it found an operation that hides a gradient. Known after the first query
            with a gradient.
        replaced: The original view's logits of the last query, detached, if it returned other
            scores in their place; else None. Only they are predictions.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._from_last: int | None = None
        self.helps = False
        self.replaced: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return scores (N, classes), with a graph to `x` if gradients are enabled.

        Without a gradient, return the logits of the original view.
        """
        self.replaced = None
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self._view(x)
        watching = _Watching(len(x))
        with watching:
            answer = self._view(as_queried(x))  # a copy, since gradients are taken to x
        candidates = [scores for scores in watching.scores if scores.shape == answer.shape]
        if self._from_last is None:
            self._from_last = _last_alive(answer, candidates, x)
            self.helps = watching.rounded or self._from_last > 0
        if not self._from_last or self._from_last > len(candidates):
            return answer
        self.replaced = answer.detach()
        return candidates[-self._from_last]


def _last_alive(answer: Tensor, candidates: list[Tensor], x: Tensor) -> int:
    """Return the position of the scores to read, counted from the last; 0 for the output itself.

    The scores must have the same top class as the output for every member with only one top class.
    Of these, return the last ones with a gradient for the most members.
    """
    best, most = 0, _alive(answer, x)
    answer_class = answer.detach().nan_to_num().argmax(dim=1)
    top = answer.detach().nan_to_num().amax(dim=1, keepdim=True)
    sure = (answer.detach() == top).sum(dim=1) == 1
    for distance, scores in enumerate(reversed(candidates), start=1):
        if most == len(x):
            break
        agrees = scores.detach().nan_to_num().argmax(dim=1) == answer_class
        if not bool(agrees[sure].all()):
            continue
        alive = _alive(scores, x)
        if alive > most:
            best, most = distance, alive
    return best


def _alive(scores: Tensor, x: Tensor) -> int:
    """Return the number of members whose margin has a finite gradient that is not zero."""
    if not scores.requires_grad:
        return 0
    top = scores.detach().argmax(dim=1)
    try:
        (gradient,) = torch.autograd.grad(
            margin(scores.float(), top).sum(), x, retain_graph=True, allow_unused=True
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # the defense changed in place what this gradient needs
        return 0
    if gradient is None:
        return 0
    rows = gradient.flatten(1)
    return int((rows.isfinite().all(dim=1) & (rows != 0).any(dim=1)).sum())
