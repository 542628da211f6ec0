"""Find out whether an error comes from the user's code, and from which line."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from functools import cache
from pathlib import Path
from typing import Final

_OWN: Final = Path(__file__).parents[1]
_CARRYING: Final = frozenset(
    {
        "PIL",
        "accelerate",
        "click",
        "filelock",
        "fsspec",
        "gradio",
        "jinja2",
        "matplotlib",
        "numpy",
        "pyautoattack",
        "pydantic",
        "pydantic_core",
        "ray",
        "rich",
        "safetensors",
        "scipy",
        "torch",
        "torchvision",
        "typer",
    }
)
"""Packages that torch-dent calls: an error in one of them is blamed on its caller."""


def place(error: BaseException, *, installed: bool = True) -> str | None:
    """Return the place outside this package where an error that passed through it was raised.

    Args:
        error: The caught error. If it has no such place, the error that caused it is searched.
        installed: Whether installed packages count, too, or only the user's own files.

    Returns:
        The innermost place outside this package, its dependencies, and Python itself, for example
        `mine.py, line 12, in forward`; `None` if there is none.
    """
    current: BaseException | None = error
    while current is not None:
        frames = [
            f
            for f in traceback.extract_tb(current.__traceback__)
            if _is_others(f.filename, installed)
        ]
        if frames:
            last = frames[-1]
            return f"{_shown(last.filename)}, line {last.lineno}, in {last.name}"
        current = current.__cause__
    return None


def _shown(filename: str) -> str:
    path = Path(filename)
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else filename


def _is_others(filename: str, installed: bool) -> bool:
    if filename.startswith("<"):  # code that Python or a compiler has generated
        return False
    path = Path(filename)
    if path.is_relative_to(_OWN):
        return False
    for folder in _installed():
        if path.is_relative_to(folder):
            name = path.relative_to(folder).parts[0].removesuffix(".py")
            return installed and name not in _CARRYING
    return not path.is_relative_to(_standard())


@cache
def _installed() -> tuple[Path, ...]:
    """Return the folders of installed packages."""
    folders = {
        path for path in map(Path, sys.path) if path.name in ("site-packages", "dist-packages")
    }
    return (*folders, *(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")))


@cache
def _standard() -> Path:
    """Return the folder of Python's own modules."""
    return Path(sysconfig.get_path("stdlib"))
