"""The folders of `make gpu`. It imports nothing that may still lie in wheels."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
SHEETS: Final = ROOT / ".sheets"
"""Folder in which the parts of the training set are carried; git ignores it."""
