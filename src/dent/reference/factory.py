"""Defenses of the user's own: `package.module:factory`, imported and called with the model."""

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from dent.errors import DentError, UnknownNameError, UnsupportedModelError

_DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_SPEC = re.compile(f"({_DOTTED}):({_DOTTED})")


def build(spec: str, model: nn.Module) -> Any:
    """Import a factory and call it with the model.

    Modules are looked for in the current folder first, then among what is installed. This runs the
    code that was named: name only code you trust.

    Args:
        spec: `package.module:factory`; the factory may be a class, or an attribute of one.
        model: its one argument.

    Returns:
        What the factory returned.

    Raises:
        UnknownNameError: `spec` has another form, or there is no such module or factory.
        UnsupportedModelError: importing the module or calling the factory raised.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UnknownNameError(
            f"Expected package.module:factory with dots between the parts, got {spec!r}."
        )
    with _current_folder_first():
        factory = _find(_import(match[1], spec), match[2], spec)
        try:
            return factory(model)
        except DentError:
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"{spec} raised {type(error).__name__}: {error}. It is called with the model as "
                "its one argument."
            ) from error


@contextlib.contextmanager
def _current_folder_first() -> Iterator[None]:
    # A console script starts with its own folder on the path, not with the user's.
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()  # the module may have been written a moment ago
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _import(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise UnknownNameError(
                f"{spec}: no module named {error.name!r} in {Path.cwd()} or installed. Run this "
                "where the module lies, or install its package."
            ) from None
        raise UnsupportedModelError(f"{spec}: importing {name} raised {error!r}.") from error
    except Exception as error:
        raise UnsupportedModelError(f"{spec}: importing {name} raised {error!r}.") from error


def _find(module: ModuleType, path: str, spec: str) -> Callable[[nn.Module], Any]:
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            close = get_close_matches(part, [name for name in dir(found) if name[0] != "_"], n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UnknownNameError(
                f"{spec}: {module.__name__} ({getattr(module, '__file__', None)}) has no "
                f"{path!r}.{hint}"
            )
        found = getattr(found, part)
    if isinstance(found, nn.Module) or not callable(found):
        raise UnsupportedModelError(
            f"{spec} must be a function or class that takes the model, got "
            f"{type(found).__name__}: write `def make(model): return ...` and name that."
        )
    return found  # type: ignore[no-any-return]
