"""Descriptions of models: equal for models that compute the same function in the same way.

A description has the classes of all modules, their attributes, hooks and tensors, and the functions
that they use, with their code, defaults and closures. It is equal for copies of a model, in any
process. It says nothing of large parameters and of installed packages' code: predictions tell
models apart that differ there.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dent.support.code_names import used_names

_LARGE: Final = 2**16
"""Number of values above which a parameter is described by its shape."""
_ATOMS: Final = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), range, slice)
_NAMED: Final = (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodWrapperType,
    WrapperDescriptorType,
)
_WRAPPED: Final = {
    property: ("fget", "fset", "fdel"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    cached_property: ("func",),
    partial: ("func", "args", "keywords", "__dict__"),
    MethodType: ("__func__", "__self__"),
}
"""Attributes that have all contents of an object, by its class."""
_HOOKS: Final = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_OF_PYTORCH: Final = frozenset(vars(nn.Module())) - {"training", "_compiled_call_impl"}
_NO_BEHAVIOR: Final = frozenset(
    {"__annotations__", "__dict__", "__doc__", "__module__", "__weakref__", "_abc_impl"}
)
_FOREIGN: Final = frozenset(sys.stdlib_module_names) - {"__main__"} | {"dent", "torch"}
"""Packages whose classes are described by name. So are those of installed packages."""

AttributePath = tuple[str, str]
"""The name of a module, and that of an attribute."""


class DescribedAttribute(NamedTuple):
    """The description of one attribute.

    Attributes:
        digest: A hash of its content.
        has_code: Whether it contains more than numbers, text, tensors and containers of them.
    """

    digest: str
    has_code: bool


Description = Mapping[AttributePath, DescribedAttribute]


def described(model: object) -> Description | None:
    """Return the description of a model, or None if it holds something that has none.

    Args:
        model: A module or another function of a batch. If it answers in place of a module, as its
            attribute `answers_as` says, the description is that of this module.
    """
    try:
        return _Describer(getattr(model, "answers_as", model)).entries()
    except Exception:  # the classes of a model are a user's and may raise anything
        return None


def unchanged(before: Description | None, after: Description | None) -> Description | None:
    """Return what a query left as it was: a module may count its calls.

    Args:
        before: The description before the query.
        after: The description after it.

    Returns:
        The part that is equal in both, or None if one is missing, or if they differ in more than
        data.
    """
    if before is None or after is None:
        return None
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    if any(each[path].has_code for each in (before, after) for path in changed & each.keys()):
        return None
    return {path: entry for path, entry in before.items() if path not in changed}


class _UndescribedError(Exception):
    """A value that no description can represent."""


class _Describer:
    """One traversal of a model. Every function, class and object is described once."""

    def __init__(self, model: object) -> None:
        self._model = model
        self._has_code = False
        self._names: dict[int, str] = {}
        self._known: dict[int, str] = {}
        self._held: list[object] = []  # so that no id is reused

    def entries(self) -> dict[AttributePath, DescribedAttribute]:
        """Return the description of the model, by module and attribute."""
        return dict(self._entries(self._model))

    def _entries(self, model: object) -> Iterator[tuple[AttributePath, DescribedAttribute]]:
        if not isinstance(model, nn.Module):
            yield ("", ""), self._entry(model)
            return
        modules = list(model.named_modules())
        outer, self._names = self._names, self._names | {id(each): name for name, each in modules}
        for name, module in modules:
            yield (name, "class"), self._entry(type(module))
            for attribute, value in _contents(module):
                yield (name, attribute), self._entry(value)
        self._names = outer

    def _entry(self, value: object) -> DescribedAttribute:
        outer, self._has_code = self._has_code, False
        entry = DescribedAttribute(self._of(value), self._has_code)
        self._has_code = outer or entry.has_code
        return entry

    def _of(self, value: Any) -> str:
        data = self._of_data(value)
        if data is not None:
            return data
        self._has_code = True
        if id(value) in self._names:
            return _digest("module", self._names[id(value)])
        return self._once(value)

    def _of_data(self, value: Any) -> str | None:
        """Describe numbers, text, tensors and containers; return None for anything else."""
        kind = type(value)
        if kind in _ATOMS or isinstance(value, torch.dtype | torch.device):
            return _digest(kind.__name__, repr(value))
        if isinstance(value, Tensor | np.ndarray):
            return _of_tensor(value) if isinstance(value, Tensor) else _of_array(value)
        if kind is dict:
            pairs = ((self._of(key), self._of(each)) for key, each in value.items())
            return _digest("dict", *pairs)
        if kind not in (tuple, list, set, frozenset):
            return None
        items = map(self._of, value)
        return _digest(kind.__name__, *(items if kind in (tuple, list) else sorted(items)))

    def _once(self, value: Any) -> str:
        if id(value) not in self._known:
            self._held.append(value)
            self._known[id(value)] = _digest("again", type(value).__qualname__)  # within itself
            self._known[id(value)] = self._of_code(value)
        return self._known[id(value)]

    def _of_code(self, value: Any) -> str:
        describe: dict[Any, Callable[[Any], str]] = {
            nn.Module: lambda module: _digest(*self._entries(module)),
            FunctionType: self._of_function,
            type: self._of_class,
            CodeType: self._of_bytecode,
            ModuleType: lambda module: _digest("import", module.__name__),
            RemovableHandle: lambda _: _digest("handle"),  # of a hook, which its module has
            _NAMED: self._of_builtin,
        }
        for kind, description in describe.items():
            if isinstance(value, kind):
                return description(value)
        return self._of_object(value)

    def _of_bytecode(self, code: CodeType) -> str:
        names = (code.co_names, code.co_freevars, code.co_cellvars, code.co_flags)
        return _digest(code.co_code, names, *map(self._of, code.co_consts))

    def _of_builtin(self, value: Any) -> str:
        owner = getattr(value, "__self__", None)
        kind = getattr(value, "__objclass__", None)
        return _digest(value.__name__, self._of(owner), self._of(kind))

    def _of_function(self, function: FunctionType) -> str:
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        used = dict(_globals_of(function)) if _is_own(function.__module__) else {}
        parts = (function.__code__, function.__defaults__, function.__kwdefaults__, cells, used)
        name = (function.__module__, function.__qualname__)
        return _digest(name, *map(self._of, (*parts, vars(function))))

    def _of_class(self, kind: type) -> str:
        name = (kind.__module__, kind.__qualname__)
        if not _is_own(kind.__module__):
            return _digest("class", name)
        bases = map(self._of, kind.__bases__)
        contents = ((k, self._of(v)) for k, v in vars(kind).items() if k not in _NO_BEHAVIOR)
        return _digest("class", name, *bases, *contents)

    def _of_object(self, value: Any) -> str:
        for kind, names in _WRAPPED.items():
            if isinstance(value, kind):
                return _digest(kind.__name__, *(self._of(getattr(value, name)) for name in names))
        if hasattr(value, "cache_info"):
            return _digest("cached", self._of(value.__wrapped__))
        if isinstance(value, torch.Generator):
            raise _UndescribedError
        parts = value.__reduce_ex__(4)  # what a copy is made of; raises if it cannot be copied
        if isinstance(parts, str):
            return _digest("name", type(value).__module__, parts)
        items = [list(part) if isinstance(part, Iterator) else part for part in parts]
        return _digest("object", *map(self._of, items))


def _contents(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield everything that takes part in a forward of a module, but its class."""
    attributes = vars(module)
    for name, parameter in attributes["_parameters"].items():
        large = parameter is not None and parameter.numel() > _LARGE
        yield f"{name}, parameter", tuple(parameter.shape) if large else parameter
    for name, buffer in attributes["_buffers"].items():
        yield f"{name}, buffer", buffer
    for name, child in attributes["_modules"].items():
        yield f"{name}, module", child
    for name in _HOOKS:
        yield name, list(attributes.get(name, {}).values())  # the keys count all hooks ever made
    for name, value in attributes.items():
        if name not in _OF_PYTORCH:
            yield name, value


def _globals_of(function: FunctionType) -> Iterator[tuple[str, object]]:
    """Yield the global values that a function may use, also those of its own modules."""
    names = sorted(set(used_names(function.__code__)))
    for name in names:
        if name in function.__globals__:
            value = function.__globals__[name]
            yield name, value
            if isinstance(value, ModuleType) and _is_own(value.__name__):
                inside = vars(value)
                yield from ((f"{name}.{each}", inside[each]) for each in names if each in inside)


def _is_own(module: str | None) -> bool:
    """Return whether a module is a user's, and not of an installed package."""
    top = (module or "").partition(".")[0]
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return top not in _FOREIGN and not {"site-packages", "dist-packages"} & set(
        file.replace("\\", "/").split("/")
    )


def _of_tensor(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous().reshape(-1)
    form = (type(tensor).__name__, tuple(tensor.shape), str(tensor.dtype))
    return _digest(form, values.view(torch.uint8).numpy().tobytes())


def _of_array(array: np.ndarray[Any, Any]) -> str:
    if array.dtype.hasobject:
        raise _UndescribedError
    return _digest(array.shape, array.dtype.str, array.tobytes())


def _digest(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(f"{type(part).__name__} {len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()
