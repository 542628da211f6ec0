"""Running the files of examples/ in process."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example() -> Callable[[str], dict[str, Any]]:
    """Return what a file of examples/ defines, without running its main()."""
    return lambda name: runpy.run_path(str(FOLDER / f"{name}.py"))
