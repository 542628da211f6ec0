"""Run a child process that downloads into a folder, watch it, and end it when it stalls."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dent.data.progress import OnBytes
from dent.data.sources import SourceError

_LOOK_EVERY = 0.1
_KEPT_OF_STDERR = 16_384


def run_watched(
    command: Sequence[str],
    *,
    watch: Path,
    stage: str,
    total: int,
    stall_seconds: float,
    report: OnBytes,
) -> tuple[int, list[str]]:
    """Run a command and report how the folder it writes to grows.

    The command and its children are ended if the wait ends early, for whatever reason: an error, a
    stall, Ctrl-C, or an exception in `report`.

    Args:
        command: Program and arguments; no shell is involved.
        watch: The folder that the command downloads into, and its working directory.
        stage: Name of the stage in reports.
        total: Bytes expected. Reports stop there, because the folder also gets unpacked files.
        stall_seconds: The command is ended if the folder has not changed in size for this long.
        report: Called with the stage, the bytes so far and the total.

    Returns:
        The exit status, and the last nonblank lines of standard error.

    Raises:
        SourceError: The command cannot be started, or stalled.
    """
    with tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(  # noqa: S603 - the caller's own words, without a shell
                command,
                cwd=watch,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        except OSError as error:
            raise SourceError(f"{command[0]} could not be started: {error.strerror}") from error
        try:
            _wait(process, watch, stall_seconds, lambda n: report(stage, min(n, total), total))
        finally:
            _end(process)
        size = stderr.seek(0, os.SEEK_END)
        stderr.seek(max(0, size - _KEPT_OF_STDERR))
        lines = stderr.read().decode(errors="replace").splitlines()
    return process.returncode, [line.strip() for line in lines if line.strip()]


def _wait(
    process: subprocess.Popen[bytes],
    watch: Path,
    stall_seconds: float,
    report: Callable[[int], None],
) -> None:
    size, changed = 0, time.monotonic()
    report(0)
    while process.poll() is None:
        time.sleep(_LOOK_EVERY)
        latest = _folder_size(watch)
        if latest != size:
            size, changed = latest, time.monotonic()
            report(size)
        elif time.monotonic() - changed > stall_seconds:
            noun = "byte" if size == 1 else "bytes"
            raise SourceError(
                f"nothing arrived for {stall_seconds:g} s, {size:,} {noun} before that"
            )


def _folder_size(folder: Path) -> int:
    size = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.stat(os.path.join(path, name)).st_size
            except FileNotFoundError:  # moved since the folder was listed
                continue
    return size


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    if sys.platform == "win32":
        process.kill()
    else:
        # npm is often a script that starts node, so end the whole process group.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
