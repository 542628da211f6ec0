"""Lazy packages: each public name loads its module when it is first used."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence


def lazy(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """Return a `__getattr__` for a package (PEP 562) that loads its public names.

    Args:
        package: The package's `__name__`.
        modules: For each module, the public names that it defines.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(module_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
