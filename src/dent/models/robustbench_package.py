"""Import the package `robustbench`, which needs two modules that no longer exist.

robustbench 1.1.1 imports `pkg_resources`, which setuptools dropped, and `autoattack`, although it
installs the same code under the name `pyautoattack`. This module provides both under the expected
names, but only during the import.
"""

from __future__ import annotations

import importlib
import importlib.resources
import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from dent.support.extras import require

#: The facts about RobustBench's models, as a table that `tools/tabulate_robustbench.py` writes.
TABLE: Final = Path(__file__).parent / "tables" / "robustbench.json"
PURPOSE: Final = "a RobustBench model"
_LOCK: Final = threading.Lock()


def import_robustbench(module: str) -> Any:
    """Import a module of RobustBench, such as `robustbench.utils`.

    Raises:
        MissingExtraError: If RobustBench is not installed, or cannot be imported.
    """
    with _LOCK:
        if (present := sys.modules.get(module)) is not None:
            return present
        with _stand_ins():
            return require(module, PURPOSE, extra="zoo")


@contextmanager
def _stand_ins() -> Iterator[None]:
    added = {}
    if importlib.util.find_spec("pkg_resources") is None:
        added["pkg_resources"] = _pkg_resources()
    if importlib.util.find_spec("autoattack") is None:
        added["autoattack"] = importlib.import_module("pyautoattack")
        added["autoattack.state"] = importlib.import_module("pyautoattack.state")
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            sys.modules.pop(name, None)


def _pkg_resources() -> ModuleType:
    """Return a module with the one function of `pkg_resources` that RobustBench calls."""

    def resource_filename(package: str, path: str) -> str:
        return str(importlib.resources.files(package.rpartition(".")[0] or package) / path)

    module = ModuleType("pkg_resources")
    vars(module)["resource_filename"] = resource_filename
    return module
