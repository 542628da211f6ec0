"""Measure peak memory, each measurement in its own process."""

import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_of(script: str, *arguments: str) -> float | None:
    """Run a script that prints `rise`, and return it in MB; None if the system is not Linux."""
    if not _STATUS.exists():
        return None
    # These make malloc return freed memory to the system at once. Otherwise, memory that it keeps
    # would hide a peak.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    ran = subprocess.run(  # noqa: S603 - one of these scripts
        [sys.executable, script, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return float(ran.stdout.splitlines()[-1])


def rise(run: Callable[[], object]) -> float:
    """Return by how many MB a call raises the peak memory of this process, after a warm-up."""
    run()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _read("VmRSS")
    run()
    return _read("VmHWM") - before


def _read(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    if found is None:
        raise RuntimeError(f"{_STATUS} has no {name}")
    return int(found[1]) / 1024
