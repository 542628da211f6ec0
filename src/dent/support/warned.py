"""Warnings that name the user's line."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final

import torch

_INSIDE: Final = tuple(
    str(Path(file).parent) + "/" for file in (Path(__file__).parent, torch.__file__)
)


_OWN_BATCHES: ContextVar[bool] = ContextVar("own batches", default=False)


@contextmanager
def own_batches() -> Iterator[None]:
    """Within it, torch-dent chooses the batches, so nobody is warned of their size."""
    token = _OWN_BATCHES.set(True)
    try:
        yield
    finally:
        _OWN_BATCHES.reset(token)


def are_own_batches() -> bool:
    """Whether torch-dent chose the batches; see `own_batches`."""
    return _OWN_BATCHES.get()


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line that called dent, from outside of dent and torch.

    Args:
        message: What is wrong, and what to do.
        category: Of the warning.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
