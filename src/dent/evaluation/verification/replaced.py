"""Find functions of torch-dent and torch that somebody's code has replaced.

The code of a defense runs in the process of the checks. It can replace an attack or a check there,
by accident or on purpose. Code that hides this well cannot be found from within the process.
"""

import sys
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, ModuleType
from typing import Any, Final

_TORCH: Final = ("torch", "torch.autograd", "torch.nn.functional")
_CLASSES: Final = ("Tensor", "Generator")
"""Classes of torch whose methods are compared, beside those of torch-dent."""
_KINDS: Final = (
    FunctionType,
    BuiltinFunctionType,
    MethodDescriptorType,
    staticmethod,
    classmethod,
    property,
    type,
)
Functions = dict[str, tuple[object, object]]
"""By name: a function or class, and the code of a function."""


def functions() -> Functions:
    """Return all functions and classes of the loaded modules of torch-dent, and those of torch."""
    return {
        f"{module.__name__}.{name}": (value, getattr(value, "__code__", None))
        for module in _modules()
        for name, value in _members(module)
    }


def replaced(before: Functions) -> list[str]:
    """Return the names of the functions that are not the same any more, in order."""
    now = functions()
    return sorted(
        name
        for name, (value, code) in before.items()
        if name not in now or now[name][0] is not value or now[name][1] is not code
    )


def _modules() -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        given: object = module  # anybody may put anything there
        is_ours = name.partition(".")[0] == "dent"
        if isinstance(given, ModuleType) and (is_ours or name in _TORCH):
            yield module


def _members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in list(vars(module).items()):
        if not isinstance(value, _KINDS):
            continue
        yield name, value
        is_own = getattr(value, "__module__", None) == module.__name__
        if isinstance(value, type) and (
            is_own or (module.__name__ == "torch" and name in _CLASSES)
        ):
            for part, method in list(vars(value).items()):
                if isinstance(method, _KINDS):
                    yield f"{name}.{part}", method
