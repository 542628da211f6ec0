"""`make gpu`: tests, speed, a verdict and trainings on a GPU, without a network.

    python benchmarks/gpu.py                        all parts in order, each within its minutes
    python benchmarks/gpu.py --part bench           one part; the same command continues it
    python benchmarks/gpu.py --device cpu --small   all parts in tiny form; measures nothing
    python benchmarks/gpu.py --collect              before: fetch wheels into .wheels/
    python benchmarks/gpu.py --pack                 before `train`: the training set into .sheets/

Run the last two before, on a machine with a network. Without a training set, `train` is left out.
A part writes PART.json into --out, with the device, its driver and the versions. A part that is
complete there is not run again. If the environment variable OUT names a folder, the files in --out
(not its folders) are copied there every few seconds, and all parts together take at most 9 minutes.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import wheels
from gpu_back import Back, pack, unpack
from gpu_paths import ROOT, SHEETS

HERE: Final = Path(__file__).parent
MINUTES: Final = {"tests": 3.0, "bench": 3.0, "verdict": 2.0, "train": 8.0}
"""Minutes that a part may take. Parts that need nothing but the checkout come first."""
TOTAL: Final = 9.0
"""Minutes of all parts together on a machine whose files are brought back."""
CARRIED: Final = 64.0
"""MiB that a copy of the checkout to another machine may have, with wheels and a training set."""
_GRACE: Final = 20.0
"""Seconds that a part gets to stop by itself after its time is over."""
_LEAST: Final = 0.25
"""Minutes without which a part does not start."""
_EVERY: Final = 5.0
"""Seconds between two copies of the files to bring back."""
_PIECES: Final = {True: 1, False: 4}
"""Number of files for the folder of the verdict, by whether `train` brings back weights, too."""
_SPARE: Final = 2**20
_SHRINK: Final = (
    "A smaller checkout leaves room for larger parts:\n"
    "    git sparse-checkout set --no-cone '/*' '!/board/' '!/docs/'    "
    "(git sparse-checkout disable undoes it)"
)


def main() -> int:
    """Run the command line, and return the exit status."""
    began = time.monotonic()
    options = _options()
    if options.collect:
        for wheel in wheels.collect():
            print(f"{wheel.stat().st_size:>12,}  {wheel.name}")
        return 0
    if options.pack:
        return _pack(options.carried)
    if options.out is None:
        options.out = Path("runs/gpu-small" if options.small else "runs/gpu")
    if options.run:
        return _run(options)
    options.out.mkdir(parents=True, exist_ok=True)
    target = os.environ.get("OUT")
    back = Back(options.out, Path(target) if target else None)
    total = options.total or (TOTAL if target else None)
    deadline = None if total is None else began + 60 * total
    environment = dict(os.environ)
    site = wheels.install()
    paths = [str(ROOT / "src"), *([str(site)] if site else []), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    parts = options.part or _parts(small=options.small)
    folder = options.out / "verdict"
    failed = []
    for part in parts:
        if part == "verdict":
            unpack(folder)
        if not _within(part, options, environment, deadline, back):
            failed.append(part)
        if part == "verdict" and target and folder.exists():
            pack(folder, _PIECES["train" in parts])
        back.bring()
    print(
        f"{options.out}: {'all complete' if not failed else 'not complete: ' + ', '.join(failed)}"
    )
    return 1 if failed else 0


def _parts(*, small: bool) -> list[str]:
    """Return the parts to run by default."""
    if small or any(SHEETS.glob("*/part.json")):
        return list(MINUTES)
    print("train is left out: no training set in .sheets/ (--pack, or name it with --part)")
    return [part for part in MINUTES if part != "train"]


def positive(text: str) -> float:
    """Read a number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return number


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Minutes that a part may take: "
        + ", ".join(f"{part} {minutes:g}" for part, minutes in MINUTES.items()),
    )
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument(
        "--part",
        action="append",
        choices=MINUTES,
        help="default: all, in order, and train if there is a training set",
    )
    parser.add_argument("--minutes", type=positive, help="for each part, in place of its own")
    parser.add_argument(
        "--total",
        type=positive,
        metavar="MINUTES",
        help=f"for all parts together (default: no limit; {TOTAL:g} if OUT is set)",
    )
    parser.add_argument("--small", action="store_true", help="tiny, to try it on a CPU")
    parser.add_argument("--out", type=Path, help="default: runs/gpu; with --small runs/gpu-small")
    parser.add_argument("--collect", action="store_true", help="fetch wheels into .wheels/")
    parser.add_argument("--pack", action="store_true", help="training set into .sheets/")
    parser.add_argument(
        "--carried",
        type=positive,
        default=CARRIED,
        metavar="MIB",
        help="with --pack: what one copy of checkout, wheels and a part may have (default: 64)",
    )
    parser.add_argument("--run", choices=MINUTES, help=argparse.SUPPRESS)
    return parser.parse_args()


def _within(
    part: str,
    options: argparse.Namespace,
    environment: dict[str, str],
    deadline: float | None,
    back: Back,
) -> bool:
    """Run a part in its own process, and return whether it is complete.

    The process is killed if it does not stop in time. `deadline` is the time at which it must have
    stopped, by `time.monotonic`.
    """
    path = options.out / f"{part}.json"
    if _record(path).get("complete"):
        print(f"== {part}: complete in {path}", flush=True)
        return True
    minutes = MINUTES[part] if options.minutes is None else options.minutes
    if deadline is not None:
        minutes = min(minutes, (deadline - time.monotonic() - _GRACE) / 60)
        if minutes < _LEAST:
            print(f"== {part}: left out, no time", flush=True)
            return False
    print(f"== {part}, at most {minutes:.3g} minutes", flush=True)
    command = [sys.executable, str(HERE / "gpu.py"), "--run", part, "--minutes", str(minutes)]
    command += ["--device", options.device, "--out", str(options.out)]
    command += ["--small"] if options.small else []
    began = time.monotonic()
    status = _ended(command, environment, 60 * minutes + _GRACE, back)
    record = _record(path)
    sitting = {"status": status, "seconds": round(time.monotonic() - began, 1)}
    record.setdefault("sittings", []).append(sitting)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return status == 0 and bool(record.get("complete"))


def _ended(
    command: list[str], environment: dict[str, str], seconds: float, back: Back
) -> int | str:
    """Run a command for at most some seconds, bring its files back meanwhile, return its status."""
    end = time.monotonic() + seconds
    with subprocess.Popen(command, env=environment) as process:  # noqa: S603 - this very script
        while (left := end - time.monotonic()) > 0:
            try:
                return process.wait(min(_EVERY, left))
            except subprocess.TimeoutExpired:
                back.bring()
            except BaseException:
                process.kill()
                raise
        process.kill()
    return "ended: it did not stop in time"


def _record(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _run(options: argparse.Namespace) -> int:
    """Run a part in this process, and return the exit status."""
    import gpu_bench  # noqa: PLC0415 - what they need may lie in wheels
    import gpu_parts  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from gpu_job import Job, machine  # noqa: PLC0415

    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU is here: try --device cpu --small", file=sys.stderr)
        return 2
    parts = {
        "tests": gpu_parts.tests,
        "bench": gpu_bench.run,
        "train": gpu_parts.train,
        "verdict": gpu_parts.verdict,
    }
    deadline = time.monotonic() + 60 * options.minutes
    done = _record(options.out / f"{options.run}.json")
    job = Job(options.run, device, options.out, deadline, options.small, done)
    job.keep(part=options.run, small=options.small, machine=machine(device))
    parts[options.run](job)
    return 0


def _pack(carried: float) -> int:
    """Pack the training set into parts that fit beside the checkout and its wheels."""
    sys.path.insert(0, str(ROOT / "src"))
    import sheets  # noqa: PLC0415 - what they need may lie in wheels

    from dent import data  # noqa: PLC0415
    from dent.errors import DataError  # noqa: PLC0415

    taken = _size(_travelling()) + _size(list(wheels.FOLDER.glob("*.whl")))
    limit = int(carried * 2**20) - taken - _SPARE
    print(f"{taken / 2**20:.1f} of {carried:g} MiB are taken by the checkout and .wheels/")
    found: Any = data.load("cifar10", "train")
    try:
        parts = sheets.pack(found.pixels, found.labels, SHEETS, limit=limit)
    except DataError as error:
        print(f"{error}. {_SHRINK}", file=sys.stderr)
        return 1
    for folder in parts:
        print(f"{_size(list(folder.iterdir())):>12,}  {folder}")
    print(f"Copy these {len(parts)} parts one after the other. {_SHRINK}")
    return 0


def _travelling() -> list[Path]:
    """Return the files of the checkout that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
    paths = {ROOT / name for name in listed.stdout.split("\0") if name}
    return [path for path in paths if path.is_file()]


def _size(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


if __name__ == "__main__":
    sys.exit(main())
