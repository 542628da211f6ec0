"""The command line as its own process."""

import os
import subprocess
import sys
from pathlib import Path


def dent(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `dent` in a folder, whose `cache` holds its datasets."""
    return subprocess.run(
        [sys.executable, "-m", "dent", *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "DENT_DATA": str(cwd / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
