"""The names that compiled code uses."""

from collections.abc import Iterator
from types import CodeType


def used_names(code: CodeType) -> Iterator[str]:
    """Yield the globals and attributes that code names, with those of functions defined in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from used_names(constant)
