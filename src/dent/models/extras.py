"""Packages that only some models need, imported when those are asked for."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from dent.errors import MissingExtraError


def require(module: str, purpose: str) -> Any:
    """Imports a package of the extra `zoo`.

    Args:
        module: The module's name.
        purpose: What needs it, for the message.

    Raises:
        MissingExtraError: If it is not installed, or cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            # Other packages' deprecations are nothing that a user of this one can mend.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"{purpose} needs the package {package}, which cannot be imported here ({error}): "
            "pip install 'torch-dent[zoo]'"
        ) from error
