"""Kills trainings, again and again, and resumes them: `python -m ...kill_harness FOLDER`.

A process of its own, which loads torch once and forks: every child begins at once, and dies of
SIGKILL, which no code can catch.
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
import torch._dynamo  # accelerate loads it: once here, not in every child

from dent.training import TrainingProgress, accelerator, loop
from tests.training.subjects import run

BEFORE = (2, 0, 2, 1, 1, 2, 1)
"""Steps that are taken before each kill; before one, it may be too early to be a sitting."""
KILLS = len(BEFORE)
SITTINGS = sum(steps > 0 for steps in BEFORE) + 1
"""As many are recorded at least."""


def once(folder: Path, kill: tuple[int, float] | None) -> bool:
    """Train in a child; returns whether it was killed.

    Args:
        folder: Of the training.
        kill: How many steps the child takes, and how many seconds later it is killed; sooner
            where it has taken another step by then, so that work is left for the next kill.
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
