"""Whose code raised: the user's, with its place, or this package's."""

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
"""Packages that this one calls itself: what they raise, somebody else has asked for."""


def place(error: BaseException, *, installed: bool = True) -> str | None:
    """Where in the code of others an error was raised that went through this package's.

    Args:
        error: As it was caught. Of one that was raised from another, the other counts, too.
        installed: Whether installed packages are others, too, or the user's own files alone.

    Returns:
        Such as `mine.py, line 12, in forward`: the innermost place that is neither in this package,
        nor in what it is built on, nor in Python itself; `None` where there is none.
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
    if filename.startswith("<"):  # what Python, or a compiler, has made itself
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
    """Where packages lie."""
    folders = {
        path for path in map(Path, sys.path) if path.name in ("site-packages", "dist-packages")
    }
    return (*folders, *(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")))


@cache
def _standard() -> Path:
    """Where Python's own modules lie."""
    return Path(sysconfig.get_path("stdlib"))
