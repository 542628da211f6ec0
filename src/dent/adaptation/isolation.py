"""Contexts that isolate adaptation from the caller's grad mode, random state and hooks."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from threading import Lock
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks, saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from dent.adaptation.random_state import restore_changed, shared_states


@contextmanager
def isolated(x: Tensor, *, differentiable: bool) -> Iterator[None]:
    """Record gradients whatever the caller's grad mode, and restore the random state on exit.

    Args:
        x: the batch; the generators of torch (CPU and the batch's device), NumPy and Python are
            restored.
        differentiable: choose operations that have a second derivative.
    """
    attention = _MathAttention() if differentiable else nullcontext()
    with torch.inference_mode(False), torch.enable_grad(), _same_random_state(x), attention:
        yield


@contextmanager
def hidden_from_hooks() -> Iterator[None]:
    """Hide the tensors that autograd saves from the hooks of the caller, if there are any.

    For graphs that not every call computes. `torch.utils.checkpoint` around a defense compares the
    tensors that autograd saves in the forward and when it repeats the forward.
    """
    with ExitStack() as stack:
        if _has_hooks():
            with suppress(RuntimeError):  # some defenses refuse hooks (`recomputation_refused`)
                stack.enter_context(saved_tensors_hooks(_unchanged, _unchanged))
        yield


def _has_hooks() -> bool:
    try:
        with disable_saved_tensors_hooks("dent only looks for hooks"):
            return False
    except RuntimeError:  # PyTorch refuses to disable hooks that are in use
        return True


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


@contextmanager
def _same_random_state(x: Tensor) -> Iterator[None]:
    # Restore only if something drew, because all threads share the generators.
    before = shared_states(x.device)
    try:
        yield
    finally:
        restore_changed(before, x.device)


class _MathAttention:
    """Context for attention by plain matrix products: fused kernels have no second derivative.

    PyTorch has one switch for the whole process, so the first thread to enter sets it and the last
    to leave resets it. In other threads this changes only rounding.
    """

    _lock = Lock()
    _inside = 0
    _switch: ClassVar[AbstractContextManager[None]]

    def __enter__(self) -> None:
        kind = type(self)
        with kind._lock:
            if not kind._inside:
                kind._switch = sdpa_kernel(SDPBackend.MATH)
                kind._switch.__enter__()
            kind._inside += 1

    def __exit__(self, *error: object) -> None:
        kind = type(self)
        with kind._lock:
            kind._inside -= 1
            if not kind._inside:
                kind._switch.__exit__(None, None, None)
