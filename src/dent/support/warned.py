"""Warnings that point to the user's line."""

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
    """Context in which torch-dent itself chooses the batches, so it does not warn of their size."""
    token = _OWN_BATCHES.set(True)
    try:
        yield
    finally:
        _OWN_BATCHES.reset(token)


def are_own_batches() -> bool:
    """Return whether torch-dent itself chooses the batches; see `own_batches`."""
    return _OWN_BATCHES.get()


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning at the line outside of dent and torch that called dent.

    Args:
        message: What is wrong, and what to do.
        category: The class of the warning.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
