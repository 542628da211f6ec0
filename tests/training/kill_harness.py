"""Kill a training repeatedly and resume it: `python -m tests.training.kill_harness FOLDER`.

This is a separate process, which imports torch once and then forks, so that every child starts
fast. It kills the children with SIGKILL, which no code can catch.
"""

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # accelerate imports it: once here, not in every child

from dent.training import TrainingProgress, accelerator, loop
from tests.training.subjects import run

BEFORE = (2, 0, 2, 1, 1, 2, 1)
"""Steps before each kill. With 0, the kill may come before a session is recorded."""
KILLS = len(BEFORE)
SITTINGS = sum(steps > 0 for steps in BEFORE) + 1
"""The minimum number of recorded sessions."""


def once(folder: Path, kill: tuple[int, float] | None) -> bool:
    """Train in a child process; return whether it was killed.

    Args:
        folder: The folder of the training.
        kill: The number of steps before the kill, and the seconds from the last of them to the
            kill; one more step ends the wait, so that work is left for the next kill. None lets
            the training finish.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        _train(folder, writer)
    os.close(writer)
    if kill is not None:
        steps, after = kill
        while steps and os.read(reader, 1):
            steps -= 1
        select.select([reader], [], [], after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(reader)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"{folder.name}: a training failed")
    return os.WIFSIGNALED(status)


def _train(folder: Path, told: int) -> None:
    write = os.write

    def tell(_: TrainingProgress) -> None:
        write(told, b".")

    try:
        run(folder, progress=tell)
    except BaseException as error:
        os.write(2, f"{folder.name}: {error!r}\n".encode())
        os._exit(1)
    os._exit(0)


def main(base: Path) -> None:
    loop.CHECKPOINT_SECONDS = 0.0  # type: ignore[misc]
    accelerator("cpu", "no")  # imports what every child needs
    start = time.perf_counter()
    once(base / "whole", None)
    steps = json.loads((base / "whole" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    one = (time.perf_counter() - start) / steps
    draw = random.Random(3).random  # noqa: S311
    killed = sum(once(base / "killed", (steps, one * draw())) for steps in BEFORE)
    once(base / "killed", None)
    sys.stdout.write(json.dumps({"kills": killed}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
