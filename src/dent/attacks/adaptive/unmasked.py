"""The gradient of a defense that hides it, without help from its author.

Two operations hide a gradient in honest code. First, an output that saturates, such as a softmax of
large logits, has a gradient of exactly zero in float32. Instead, this module reads the scores that
the output was computed from: the last ones of the same shape that have the same top class and still
have a gradient. Second, rounding has a gradient of zero. Here its gradient is passed straight
through (Bengio et al. 2013).

Both are found in the operations that PyTorch runs during a query. Code that is compiled, scripted
or outside of PyTorch is not seen.
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
_ROUNDING = frozenset(
    getattr(owner, name)
    for owner in (torch, Tensor)
    for plain in ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn")
    for name in (plain, f"{plain}_")
    if hasattr(owner, name)
)


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

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        del types
        operand = args[0] if args and isinstance(args[0], Tensor) else None
        rounds = func in _ROUNDING and operand is not None and operand.requires_grad
        if rounds and operand is not None and torch.is_grad_enabled():
            self.rounded = True
            in_place = str(func.__name__).endswith("_") and not operand.is_leaf
            before = operand.detach().clone() if in_place else operand
            after = func(before, *args[1:], **(kwargs or {})).detach()
            through = _StraightThroughInPlace if in_place else _StraightThrough
            result = through.apply(operand, after)
        else:
            result = func(*args, **(kwargs or {}))
        if (
            isinstance(result, Tensor)
            and result.dim() == 2
            and len(result) == self._rows
            and result.requires_grad
            and result.is_floating_point()
        ):
            self.scores.append(result)
        return result


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
