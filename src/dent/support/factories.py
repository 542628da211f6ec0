"""Import and call the factories that users name as `package.module:factory`."""

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from torch import nn

from dent.errors import DentError, UnknownNameError, UnsupportedModelError
from dent.support.suggest import did_you_mean

_DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_SPEC = re.compile(f"({_DOTTED}):({_DOTTED})")


def call_factory(
    spec: str,
    *arguments: Any,
    kind: str,
    called: str,
    keywords: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Import a factory and call it.

    The module is searched in the current folder first, as Python itself would, and then among the
    installed packages. This runs the named code, so name only code you trust.

    Args:
        spec: `package.module:factory`; the factory may be a class, or an attribute of a class.
        *arguments: Arguments of the call.
        kind: The task of the factory, for messages: "makes a new model".
        called: How the factory is called, for messages: "without arguments: give each a default".
        keywords: Keyword arguments of the call.

    Returns:
        What the factory returned.

    Raises:
        UnknownNameError: If `spec` has another form, or there is no such module or factory.
        UnsupportedModelError: If importing the module or calling the factory raises or calls
            `sys.exit()`, or the name is no function or class. A `DentError` that the factory itself
            raises passes through.
    """
    given: object = spec
    match = _SPEC.fullmatch(given) if isinstance(given, str) else None
    if match is None or match[1].endswith(".py"):
        raise UnknownNameError(
            f"expected package.module:factory, with dots between the parts, got {spec!r}"
            + _module_of_a_file(str(spec))
        )
    with _current_folder_first():
        factory = _find(_import(match[1], spec), match[2], spec, kind)
        try:
            return factory(*arguments, **keywords)
        except DentError:
            raise
        except Exception as error:
            hint = f". It is called {called}" if _is_of_the_call(error) else ""
            raise UnsupportedModelError(f"{spec} raised {_brief(error)}{hint}") from error
        except SystemExit as error:  # else it would end the command, perhaps with status 0
            raise UnsupportedModelError(
                f"{spec} called sys.exit() while it was called: return the object, or raise an "
                "error"
            ) from error


@contextlib.contextmanager
def _current_folder_first() -> Iterator[None]:
    # A console script has its own folder on the path, not the user's current one.
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
                f"{spec}: no module named {error.name!r} in {Path.cwd()} or installed; run this "
                "in the folder of the module, or install its package"
            ) from None
        raise UnsupportedModelError(f"{spec}: importing {name} raised {_brief(error)}") from error
    except Exception as error:
        raise UnsupportedModelError(f"{spec}: importing {name} raised {_brief(error)}") from error
    except SystemExit as error:  # else it would end the command, perhaps with status 0
        raise UnsupportedModelError(
            f"{spec} called sys.exit() while it was imported: put what is a script below "
            'if __name__ == "__main__"'
        ) from error


def _find(module: ModuleType, path: str, spec: str, kind: str) -> Callable[..., Any]:
    target: Any = module
    for part in path.split("."):
        if not hasattr(target, part):
            public = [name for name, value in vars(target).items()
                      if callable(value) and not name.startswith("_")]  # fmt: skip
            raise UnknownNameError(
                f"{spec}: {module.__name__} ({getattr(module, '__file__', None)}) has no "
                f"{path!r}.{did_you_mean(part, public)}"
            )
        target = getattr(target, part)
    if isinstance(target, nn.Module) or not callable(target):
        raise UnsupportedModelError(
            f"{spec} must be a function or class that {kind}, got {type_name(target)}: write a "
            "function that returns it, and name that"
        )
    factory: Callable[..., Any] = target
    return factory


def _module_of_a_file(spec: str) -> str:
    path, _, name = spec.rpartition(":")
    if not path.endswith(".py"):
        return ""
    module = path.removesuffix(".py").replace("\\", "/").removeprefix("./").replace("/", ".")
    return f"; for that file write {module}:{name}"


def _is_of_the_call(error: Exception) -> bool:
    """Return whether the arguments do not fit, so that the factory's code did not begin."""
    begun = error.__traceback__ is not None and error.__traceback__.tb_next is not None
    return isinstance(error, TypeError) and not begun


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def type_name(value: object) -> str:
    """Return a value's type with its module, for messages."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
