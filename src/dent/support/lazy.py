"""Lazy packages: each public name loads its module when it is first used."""

import importlib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence


def lazy(
    package: str, modules: Mapping[str, Sequence[str]], submodules: Collection[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package (PEP 562) that loads its public names.

    Args:
        package: The package's `__name__`.
        modules: For each module, the public names that it defines.
        submodules: The modules of the package that are attributes without a separate import.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> object:
        if name in submodules:
            return importlib.import_module(f"{package}.{name}")
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(module_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def public() -> list[str]:
        own = (name for name in vars(sys.modules[package]) if name.startswith("__"))
        return sorted({*own, *module_of, *submodules})

    return load, public
