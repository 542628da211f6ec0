"""Optional packages, imported when a feature needs them."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

from dent.errors import MissingExtraError


def installing(*requirements: str, again: bool = False) -> str:
    """Return the command that installs packages, for messages and pages.

    An extra is named as `torch-dent[EXTRA]`. An installed package satisfies its own name, so pip
    then installs only the extra's packages, also for a clone of the repository. The double quotes
    work in every shell.

    Args:
        requirements: The packages to install.
        again: Whether to reinstall these packages, without their dependencies.
    """
    quoted = (f'"{each}"' if set(each) & set("[]<>=~!; ") else each for each in requirements)
    return " ".join(["pip install", *(["--force-reinstall --no-deps"] if again else []), *quoted])


def require(module: str, purpose: str, *, extra: str, package: str | None = None) -> Any:
    """Import a module that an extra installs, or that needs an extra.

    Args:
        module: The module's name.
        purpose: The feature that needs it, for the message.
        extra: The extra that installs it.
        package: Name of the missing package; by default the module's.

    Raises:
        MissingExtraError: The module is not installed, or cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            # Users of torch-dent cannot fix the deprecated calls of other packages.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(_missing(module, purpose, extra, package, str(error))) from error


def check(module: str, purpose: str, *, extra: str, package: str | None = None) -> None:
    """Check that a module is installed, without importing it.

    Args:
        module: The module's name.
        purpose: The feature that needs it, for the message.
        extra: The extra that installs it.
        package: Name of the missing package; by default the module's.

    Raises:
        MissingExtraError: The module is not installed.
    """
    if importlib.util.find_spec(module) is None:
        reason = f"No module named {module!r}"
        raise MissingExtraError(_missing(module, purpose, extra, package, reason))


def _missing(module: str, purpose: str, extra: str, package: str | None, reason: str) -> str:
    return (
        f"{purpose} needs {package or module.partition('.')[0]}, which cannot be imported here "
        f"({reason}): {installing(f'torch-dent[{extra}]')}"
    )
