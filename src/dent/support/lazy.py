"""Packages whose public names load their modules when they are first used."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence


def lazy(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """Make a package's `__getattr__` (PEP 562).

    Args:
        package: The package's `__name__`.
        modules: The public names by the module that defines them.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(module_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
