"""Optional packages, imported when a feature needs them."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

from dent.errors import MissingExtraError


def installing(*requirements: str, again: bool = False) -> str:
    """The command that installs packages, for messages and everywhere else.

    An extra is named as `torch-dent[EXTRA]`: for pip, a package that is installed satisfies its own
    name, so that this brings the extra's packages to a clone as well as from the index. Quotes are
    such as every shell takes.

    Args:
        requirements: What to install.
        again: Whether to replace what is installed, and nothing else.
    """
    quoted = (f'"{each}"' if set(each) & set("[]<>=~!; ") else each for each in requirements)
    return " ".join(["pip install", *(["--force-reinstall --no-deps"] if again else []), *quoted])


def require(module: str, purpose: str, *, extra: str, package: str | None = None) -> Any:
    """Import a module that an extra brings, or that needs one.

    Args:
        module: Its name.
        purpose: The feature that needs it, for the message.
        extra: The extra that installs it.
        package: Name of the missing package; by default the module's.

    Raises:
        MissingExtraError: It is not installed, or cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            # Other packages' deprecations are nothing that a user of this one can mend.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(_missing(module, purpose, extra, package, str(error))) from error


def check(module: str, purpose: str, *, extra: str, package: str | None = None) -> None:
    """Refuse to begin what needs a module that is not installed; nothing is imported.

    Args:
        module: Its name.
        purpose: The feature that needs it, for the message.
        extra: The extra that installs it.
        package: Name of the missing package; by default the module's.

    Raises:
        MissingExtraError: It is not installed.
    """
    if importlib.util.find_spec(module) is None:
        reason = f"No module named {module!r}"
        raise MissingExtraError(_missing(module, purpose, extra, package, reason))


def _missing(module: str, purpose: str, extra: str, package: str | None, reason: str) -> str:
    return (
        f"{purpose} needs {package or module.partition('.')[0]}, which cannot be imported here "
        f"({reason}): {installing(f'torch-dent[{extra}]')}"
    )
