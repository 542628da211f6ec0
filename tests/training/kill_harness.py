"""Kills trainings, again and again, and resumes them: `python -m ...kill_harness FOLDER`.

A process of its own, which loads torch once and forks: every child begins at once, and dies of
SIGKILL, which no code can catch.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from dent.training import loop
from tests.training.subjects import run

KILLS = 6


def once(folder: Path, after: float | None) -> bool:
    """Train in a child, killing it after some seconds; returns whether it was killed."""
    pid = os.fork()
    if not pid:
        try:
            run(folder)
        except BaseException as error:
            os.write(2, f"{folder.name}: {error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"{folder.name}: a training failed")
    return os.WIFSIGNALED(status)


def main(base: Path) -> None:
    loop.CHECKPOINT_SECONDS = 0.0  # type: ignore[misc]
    start = time.perf_counter()
    once(base / "whole", None)
    length = time.perf_counter() - start
    draw = random.Random(3).random  # noqa: S311
    killed = tries = 0
    while killed < KILLS and tries < 5 * KILLS:
        tries += 1
        killed += once(base / "killed", (0.2 + 0.6 * draw()) * length)
        if not (base / "killed" / "checkpoint.safetensors").exists():
            killed -= 1  # died before it had begun: proves nothing
    once(base / "killed", None)
    sys.stdout.write(json.dumps({"kills": killed}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
