"""Make callables that refer to parts of a model refer to the same parts of its copy.

`copy.deepcopy` follows a bound method, but leaves a function as it is. So a `forward` that a
decorator has wrapped, a lambda over `self` or a hook would still run the original's layers and
write to them.
"""

import functools
import weakref
from collections.abc import Iterator, Mapping
from types import CellType, FunctionType, MethodType
from typing import Any, Final

FOLLOWED: Final = (FunctionType, MethodType, functools.partial, weakref.ref)
"""Kinds of values whose references into a model `Rebinding` follows."""

_CONTAINERS: Final = (list, tuple, dict)


class Rebinding:
    """Map from values that may refer to parts of a model to values that refer to its copy.

    Args:
        copies: each object's counterpart in the copy, by the object's id, as in the memo of
            `copy.deepcopy`.
    """

    def __init__(self, copies: Mapping[int, Any]) -> None:
        self._copies = copies
        self._made: dict[int, Any] = {}
        self._seen: list[Any] = []  # kept alive, so that no id is reused

    def of(self, value: Any) -> Any:
        """Return the value for the copy, or `value` itself if it refers to no part of the model.

        Functions are followed through closures, defaults and attributes (such as `__wrapped__`),
        but not through globals, nor through objects that the model does not hold itself.
        """
        if id(value) in self._copies:
            return self._copies[id(value)]
        if id(value) in self._made:
            return self._made[id(value)]
        if not self._reaches(value, set()):
            return value
        self._seen.append(value)
        if isinstance(value, FunctionType):
            return self._function(value)
        rebound = self._other(value)
        self._made[id(value)] = rebound
        return rebound

    def refill(self, container: Any) -> Any:
        """Replace the callables in a container of the copy and return it.

        Lists and dicts change in place; a tuple or callable is returned anew if it changes.
        """
        if isinstance(container, FOLLOWED):
            return self.of(container)
        if type(container) is tuple:
            filled = [self.refill(item) for item in container]
            same = all(a is b for a, b in zip(filled, container, strict=True))
            return container if same else tuple(filled)
        if isinstance(container, list):
            container[:] = [self.refill(item) for item in container]
        elif isinstance(container, dict):
            container.update({key: self.refill(item) for key, item in container.items()})
        return container

    def _reaches(self, value: Any, visited: set[int]) -> bool:
        """Return whether a value leads to an object that the copy replaces with another one."""
        if id(value) in self._copies:
            return self._copies[id(value)] is not value
        if id(value) in visited:
            return False
        visited.add(id(value))
        return any(self._reaches(part, visited) for part in _parts(value))

    def _function(self, function: FunctionType) -> FunctionType:
        cells = tuple(self._cell(cell) for cell in function.__closure__ or ())
        new = FunctionType(
            function.__code__, function.__globals__, function.__name__, None, cells or None
        )
        self._made[id(function)] = new  # before its parts, which may lead back to it
        for cell, new_cell in zip(function.__closure__ or (), cells, strict=True):
            if new_cell is not cell:
                new_cell.cell_contents = self.of(cell.cell_contents)
        new.__defaults__ = self.of(function.__defaults__)
        new.__kwdefaults__ = self.of(function.__kwdefaults__)
        new.__qualname__, new.__module__ = function.__qualname__, function.__module__
        new.__doc__, new.__annotations__ = function.__doc__, function.__annotations__
        vars(new).update({key: self.of(value) for key, value in vars(function).items()})
        return new

    def _cell(self, cell: CellType) -> CellType:
        """Return a new cell, or the cell itself if it refers to no part of the model.

        The state of such a cell stays shared.
        """
        if id(cell) not in self._made:
            self._made[id(cell)] = CellType() if self._reaches(cell, set()) else cell
        return self._made[id(cell)]  # type: ignore[no-any-return]

    def _other(self, value: Any) -> Any:
        if isinstance(value, MethodType):
            return MethodType(self.of(value.__func__), self.of(value.__self__))
        if isinstance(value, functools.partial):
            keywords = {key: self.of(item) for key, item in value.keywords.items()}
            rebound = type(value)(self.of(value.func), *map(self.of, value.args), **keywords)
            vars(rebound).update({key: self.of(item) for key, item in vars(value).items()})
            return rebound
        if isinstance(value, weakref.WeakMethod):
            return weakref.WeakMethod(self.of(value()))
        if isinstance(value, weakref.ref):
            return weakref.ref(self.of(value()))
        if isinstance(value, dict):
            return {key: self.of(item) for key, item in value.items()}
        return type(value)(self.of(item) for item in value)


def _parts(value: Any) -> Iterator[Any]:
    """Yield the objects that a value refers to directly."""
    if isinstance(value, FunctionType):
        yield from value.__closure__ or ()
        yield from (value.__defaults__, value.__kwdefaults__, vars(value))
    elif isinstance(value, CellType):
        yield from _content(value)
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords, vars(value))
    elif isinstance(value, weakref.ref):
        yield value()
    elif type(value) in _CONTAINERS:
        yield from value.values() if isinstance(value, dict) else value


def _content(cell: CellType) -> Iterator[Any]:
    try:
        yield cell.cell_contents
    except ValueError:  # a variable that was never set
        return
