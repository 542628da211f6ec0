"""The interface of a defense, as attacks see it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from dent.adaptation.memory_format import plain_norms
from dent.errors import DentError, InputError
from dent.outputs import check_plain


@runtime_checkable
class DynamicDefense(Protocol):
    """A defense that adapts to each batch, starting from the same state at every call.

    It need not be callable. If it is, `defense(x)` must equal `predict(x, adapt(x))`. Logits are
    (N, classes). A row with NaN, or without a finite largest logit, is not a prediction and counts
    as wrong. Minus infinity excludes a class.
    """

    @property
    def batch_dependent(self) -> bool:
        """Whether a prediction can depend on the other members of the batch."""
        ...

    def adapt(self, x: Tensor) -> Any:
        """Adapt to a batch (N, C, H, W) and return what `predict` needs."""
        ...

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        """Return logits (N, classes) of a batch under an adaptation."""
        ...


Defense: TypeAlias = DynamicDefense | nn.Module
"""A dynamic defense, or a plain module, which is batch-independent and does not adapt."""


def answer(defense: Defense, x: Tensor) -> Tensor:
    """Return the logits of a defense for a batch, after a fresh adaptation.

    Args:
        defense: A `DynamicDefense`, or a plain module.
        x: Images (N, C, H, W). The defense gets a copy, so it may write into it.

    Returns:
        Logits (N, classes), with a graph to `x` if gradients are enabled.
    """
    return query(defense, as_queried(x))


def adapted(defense: Defense, x: Tensor, **how: Any) -> Any:
    """Return the adaptation of a defense to a batch (N, C, H, W); None for a plain module.

    Args:
        defense: The defense.
        x: The batch.
        **how: Options of its `adapt`.
    """
    adapt: Any = defense.adapt if isinstance(defense, DynamicDefense) else None
    return None if adapt is None else adapt(x, **how)


def predicted(defense: Defense, x: Tensor, adaptation: Any) -> Tensor:
    """Return logits (N, classes) of a batch under an adaptation; a plain module has none."""
    untyped: Any = defense
    dynamic = isinstance(defense, DynamicDefense)
    logits: Tensor = untyped.predict(x, adaptation) if dynamic else untyped(x)
    check_plain(logits, name_of(defense), x)
    return logits


def query(defense: Defense, x: Tensor) -> Tensor:
    """Return the logits (N, classes) of a defense for a batch, which it may write into.

    Args:
        defense: The defense.
        x: Images (N, C, H, W), from `as_queried`.
    """
    untyped: Any = defense
    calls = is_callable(defense)
    with plain_norms(x):
        logits: Tensor = untyped(x) if calls else untyped.predict(x, untyped.adapt(x))
    check_plain(logits, name_of(defense), x)
    return logits


@contextmanager
def taking(defense: Defense, x: Tensor) -> Iterator[None]:
    """Query a defense for images in this context.

    Raises:
        InputError: The query failed, and the weights of the defense have another dtype than the
            images, such as float64.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        weights = _dtype_of(defense)
        if isinstance(error, DentError) or weights in (None, x.dtype):
            raise
        raise InputError(
            f"{name_of(defense)}, whose weights are {weights}, could not take images of {x.dtype} "
            f"({error}): convert it with .float(), or cast the images and the logits in its forward"
        ) from error


def _dtype_of(defense: Defense) -> torch.dtype | None:
    """Return the dtype of the weights of a module; None if there are none."""
    weights = defense.parameters() if isinstance(defense, nn.Module) else ()
    return next((weight.dtype for weight in weights if weight.is_floating_point()), None)


def is_callable(defense: Defense) -> bool:
    """Return whether a defense can be called. A module without a `forward` cannot be."""
    if not isinstance(defense, nn.Module):
        return callable(defense)
    called = type(defense).__call__ is not nn.Module.__call__
    return called or getattr(defense.forward, "__func__", None) is not nn.Module.forward


def as_queried(x: Tensor) -> Tensor:
    """Return a copy of the images in the form of a query: contiguous, and not a leaf of a graph.

    Attacks, the probe and the gradient check all pass their images through this function. So a
    defense may write into its input, and cannot tell from the input which of them sent it.

    Args:
        x: Images (N, C, H, W).
    """
    return x.clone(memory_format=torch.contiguous_format)


def name_of(defense: object) -> str:
    """Return the name of a defense's class, looking through wrappers."""
    while hasattr(defense, "inner"):
        defense = defense.inner
    return type(defense).__name__


def is_batch_dependent(defense: Defense) -> bool:
    """Return whether a defense declares that predictions can depend on the rest of the batch.

    Args:
        defense: A `DynamicDefense`, whose declaration counts, or a plain module in eval mode,
            which is batch-independent.

    Raises:
        InputError: If it is neither, if it declares something else than True or False, or if it is
            a plain module in training mode. Batch normalization would then change its running
            statistics and normalize by the batch.
    """
    if isinstance(defense, DynamicDefense):
        declared: object = defense.batch_dependent
        if declared not in (True, False):
            method = ": write @property above the method" if callable(declared) else ""
            raise InputError(
                f"{type(defense).__name__}.batch_dependent must be True or False, got "
                f"{type(declared).__name__}{method}"
            )
        return bool(declared)
    if not isinstance(defense, nn.Module):
        raise InputError(
            "an attack expects a torch.nn.Module or a defense with adapt, predict and "
            f"batch_dependent, got {type(defense).__name__}"
        )
    if any(module.training for module in defense.modules()):
        raise InputError(
            f"{type(defense).__name__} is in training mode, so attacking it would change it; "
            "call .eval() on it first"
        )
    return False
