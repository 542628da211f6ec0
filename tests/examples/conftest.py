"""A fixture that runs the files of examples/ in the test process."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example() -> Callable[[str], dict[str, Any]]:
    """Return a function that gives the names in a file of examples/, without running main()."""
    return lambda name: runpy.run_path(str(FOLDER / f"{name}.py"))
