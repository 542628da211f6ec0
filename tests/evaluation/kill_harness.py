"""Kill evaluations repeatedly and resume them: `python -m tests.evaluation.kill_harness FOLDER`.

It is a separate process, which imports torch once and then forks. So each child starts immediately,
and SIGKILL, which no code can catch, kills only the child. Prints one line of JSON per folder.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.fx.experimental.symbolic_shapes  # backward imports it: once here, not in every child

from dent import Dent, DentConfig
from dent.evaluation import Progress, Settings, evaluate
from dent.evaluation.records.journal import JOURNAL
from tests.evaluation.subjects import Push, make_model, make_subject

RANDOM_KILLS = 20
SETTINGS = Settings(n=10, batch_size=4)

torch.set_num_threads(1)
MODEL = make_model()
SUBJECT = make_subject({"dent": Dent(MODEL, DentConfig(steps=1))}, [Push()], model=MODEL)


def child(folder: Path, report: int, prepare: Callable[[], None]) -> int:
    """Fork a process that evaluates into a folder and reports each number of finished units."""
    pid = os.fork()
    if pid:
        return pid
    write = os.write

    def tell(state: Progress) -> None:
        write(report, bytes([state.done]))

    try:
        prepare()
        evaluate(SUBJECT, SETTINGS, out=folder, progress=tell)
    except BaseException as error:
        write(2, f"{folder.name}: {error!r}\n".encode())
        os._exit(1)
    os._exit(0)


def run(folder: Path, *, after: float | None, prepare: Callable[[], None]) -> bool:
    """Evaluate in a child process, and return whether it was killed.

    Every unit that the child reported as finished before it died must be in the journal.

    Args:
        folder: The run folder.
        after: Seconds until the child is killed; None does not kill it.
        prepare: Called in the child before the evaluation.
    """
    reader, writer = os.pipe()
    pid = child(folder, writer, prepare)
    os.close(writer)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    seen = max(os.read(reader, 4096) or b"\0")
    os.close(reader)
    journal = folder / JOURNAL
    lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
    if lines < seen:
        raise SystemExit(f"{folder.name}: {seen} units were done, {lines} are in the journal")
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"{folder.name}: a resumed run failed")
    return os.WIFSIGNALED(status)


def die_at(call: int) -> Callable[[], None]:
    """Make the `call`-th disk operation kill the process; a write is cut in half."""

    def prepare() -> None:
        left = [call]
        write, fsync, replace = os.write, os.fsync, os.replace

        def count() -> bool:
            left[0] -= 1
            return left[0] == 0

        def dying_write(handle: int, data: bytes) -> int:
            if count():
                write(handle, bytes(data)[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return write(handle, data)

        def dying_fsync(handle: int) -> None:
            if count():
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(handle)

        def dying_replace(old: Path, new: Path) -> None:
            if count():
                os.kill(os.getpid(), signal.SIGKILL)
            replace(old, new)

        os.write, os.fsync, os.replace = dying_write, dying_fsync, dying_replace  # type: ignore[assignment]

    return prepare


def nothing() -> None:
    """Prepare nothing in the child."""


def say(folder: Path, kills: int) -> None:
    sys.stdout.write(json.dumps({"folder": str(folder), "kills": kills}) + "\n")
    sys.stdout.flush()


def main(base: Path) -> None:
    start = time.perf_counter()
    run(base / "whole", after=None, prepare=nothing)
    length = time.perf_counter() - start
    say(base / "whole", 0)
    draw = random.Random(1).random  # noqa: S311
    done, tries = 0, 0
    while done < RANDOM_KILLS and tries < 4 * RANDOM_KILLS:
        folder, kills = base / f"random-{tries}", 0
        tries += 1
        for _ in range(5):
            if not run(folder, after=0.6 * draw() * length, prepare=nothing):
                break
            kills += 1
        run(folder, after=None, prepare=nothing)
        say(folder, kills)
        done += kills
    for call in (1, 2, 3, 5, 6, 9, 10, 12, 17, 23, 28, 41, 60):
        folder = base / f"call-{call}"
        kills = int(run(folder, after=None, prepare=die_at(call)))
        run(folder, after=None, prepare=nothing)
        say(folder, kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
