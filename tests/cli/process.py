"""Run the command line in a subprocess."""

import os
import subprocess
import sys
from pathlib import Path


def dent(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `dent` in the folder `cwd`; its datasets are in `cwd/cache`."""
    return subprocess.run(
        [sys.executable, "-m", "dent", *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "DENT_DATA": str(cwd / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
