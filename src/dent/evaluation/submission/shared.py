"""Find memory that the copies of a defense share.

`copy.deepcopy` copies what an object holds. It does not copy what is in its class, in the closures
and globals of its functions, in `functools` caches, or in objects that refuse to be copied. If such
memory changes when a copy is queried, it also changes in a copy that is never queried.
"""

import sys
from collections import deque
from collections.abc import Iterator
from functools import cache, partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

import numpy as np
from torch import Tensor, nn

from dent.adaptation.random_state import reachable
from dent.support.code_names import used_names

_FOREIGN: Final = frozenset(sys.stdlib_module_names) | {
    "dent",
    "functorch",
    "numpy",
    "scipy",
    "torch",
    "torchvision",
}
"""Packages whose classes and functions are not searched."""
_MEMORIES: Final = (dict, list, set, deque, bytearray, Tensor, np.ndarray)
_OPEN: Final = (
    nn.Module,
    dict,
    list,
    tuple,
    set,
    frozenset,
    deque,
    FunctionType,
    MethodType,
    partial,
)
_CACHE: Final = "_lru_cache_wrapper"
_VALUES: Final = (str, bytes, complex)
_NUMBERS: Final = (bool, int, float)
_MOST: Final = 100_000
"""Largest number of parts of a defense that are examined."""
Marks = list[tuple[bool, int]]
"""For each part, whether it is a number, and a value that changes when the part does."""


def marks_of(defense: object) -> Marks:
    """Return marks of everything that a defense reaches, in an order that does not change.

    `differ` compares the marks of several calls. A tensor counts as changed if PyTorch counted a
    write to it.
    """
    marks: Marks = []
    visited: dict[int, object] = {}
    classes: set[type] = set()
    pending: list[object] = [defense]
    while pending and len(marks) < _MOST:
        for part in reachable(pending.pop(), values=True, visited=visited, closed=_is_closed):
            marks.append(_mark(part))
            if isinstance(part, FunctionType):
                pending += _of_function(part)
            kinds = part.__mro__ if isinstance(part, type) else type(part).__mro__
            for kind in kinds:
                if kind not in classes:
                    classes.add(kind)
                    pending += _of_class(kind)
    return marks


def differ(first: Marks, repeated: Marks, later: Marks) -> bool:
    """Return whether a query about other images changed a defense, except for counters.

    Args:
        first: Marks after a query.
        repeated: Marks after the same query again. A number that changes here is a counter.
        later: Marks after a query about other images.
    """
    if not len(first) == len(repeated) == len(later):
        return True
    return any(
        after != again and not (after[0] and again != before)
        for before, again, after in zip(first, repeated, later, strict=True)
    )


def _mark(part: object) -> tuple[bool, int]:
    if isinstance(part, Tensor):
        return False, hash((id(part), 0 if part.is_inference() else part._version))
    if isinstance(part, _NUMBERS):
        return True, hash(part)
    if isinstance(part, _VALUES):
        return False, hash(part)
    if isinstance(part, bytearray | np.ndarray):
        return False, hash(bytes(part) if isinstance(part, bytearray) else part.tobytes())
    info = getattr(part, "cache_info", None) if _is_cache(part) else None
    return False, hash((type(part), info().misses if info is not None else 0))


def _of_class(kind: type) -> Iterator[object]:
    if not _is_own(kind.__module__):
        return
    for value in vars(kind).values():
        if isinstance(value, property):
            yield from (value.fget, value.fset, value.fdel)
        elif isinstance(value, staticmethod | classmethod):
            yield value.__func__
        elif _may_hold(value):
            yield value


def _of_function(function: FunctionType) -> Iterator[object]:
    yield from (function.__defaults__, function.__kwdefaults__, vars(function))
    known: dict[str, Any] = function.__globals__
    if not _is_own(known.get("__name__", "")):
        return
    names = set(used_names(function.__code__))
    for value in (known[name] for name in sorted(names & known.keys())):
        if isinstance(value, ModuleType) and _is_own(value.__name__):
            inside = vars(value)
            yield from filter(_may_hold, (inside[name] for name in sorted(names & inside.keys())))
        elif _may_hold(value) or isinstance(value, type):
            yield value


def _may_hold(value: object) -> bool:
    return isinstance(value, (FunctionType, *_MEMORIES)) or _is_cache(value)


@cache
def _is_closed(kind: type) -> bool:
    """Return whether not to search objects of a class, because they may cache, as loggers do."""
    return not _is_own(kind.__module__) and not issubclass(kind, _OPEN) and kind.__name__ != _CACHE


def _is_cache(value: object) -> bool:
    return type(value).__name__ == _CACHE


def _is_own(module: str) -> bool:
    return module.partition(".")[0] not in _FOREIGN
