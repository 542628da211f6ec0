"""`make gpu`: tests, speed, trainings and a verdict on a GPU, without a network.

    python benchmarks/gpu.py                        all parts in order, each within its minutes
    python benchmarks/gpu.py --part bench           one part; the same command continues it
    python benchmarks/gpu.py --device cpu --small   all parts in tiny form; measures nothing
    python benchmarks/gpu.py --collect              before: fetch wheels into .wheels/
    python benchmarks/gpu.py --pack                 before: pack the training set into .sheets/

Run the last two before, on a machine with a network. A part writes PART.json into --out, with the
device, its driver and the versions. A part that is complete there is not run again. If the
environment variable OUT names a folder, the files in --out (not its folders) are copied there too.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import wheels

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent
MINUTES: Final = {"tests": 4.0, "bench": 3.0, "train": 8.0, "verdict": 2.0}
_GRACE: Final = 20.0
"""Seconds that a part gets to stop by itself after its time is over."""


def main() -> int:
    """Run the command line, and return the exit status."""
    options = _options()
    if options.collect:
        for wheel in wheels.collect():
            print(f"{wheel.stat().st_size:>12,}  {wheel.name}")
        return 0
    if options.pack:
        return _pack()
    if options.run:
        return _run(options)
    options.out.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    site = wheels.install()
    paths = [str(ROOT / "src"), *([str(site)] if site else []), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    back = os.environ.get("OUT")
    failed = [part for part in options.part or MINUTES if not _within(part, options, environment)]
    for path in sorted(options.out.iterdir()) if back else []:
        if path.is_file():
            shutil.copy(path, Path(str(back)) / path.name)
    print(
        f"{options.out}: {'all complete' if not failed else 'not complete: ' + ', '.join(failed)}"
    )
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Minutes that a part may take: "
        + ", ".join(f"{part} {minutes:g}" for part, minutes in MINUTES.items()),
    )
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--part", action="append", choices=MINUTES, help="default: all, in order")
    parser.add_argument("--minutes", type=float, help="for each part, in place of its own")
    parser.add_argument("--small", action="store_true", help="tiny, to try it on a CPU")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--collect", action="store_true", help="fetch wheels into .wheels/")
    parser.add_argument("--pack", action="store_true", help="training set into .sheets/")
    parser.add_argument("--run", choices=MINUTES, help=argparse.SUPPRESS)
    return parser.parse_args()


def _within(part: str, options: argparse.Namespace, environment: dict[str, str]) -> bool:
    """Run a part in its own process, and return whether it is complete.

    The process is killed if it does not stop in time.
    """
    path = options.out / f"{part}.json"
    if _record(path).get("complete"):
        print(f"== {part}: complete in {path}", flush=True)
        return True
    minutes = MINUTES[part] if options.minutes is None else options.minutes
    print(f"== {part}, at most {minutes:g} minutes", flush=True)
    command = [sys.executable, str(HERE / "gpu.py"), "--run", part, "--minutes", str(minutes)]
    command += ["--device", options.device, "--out", str(options.out)]
    command += ["--small"] if options.small else []
    began = time.monotonic()
    try:
        ran = subprocess.run(  # noqa: S603 - this very script
            command, env=environment, timeout=60 * minutes + _GRACE, check=False
        )
        status: int | str = ran.returncode
    except subprocess.TimeoutExpired:
        status = "ended: it did not stop in time"
    record = _record(path)
    sitting = {"status": status, "seconds": round(time.monotonic() - began, 1)}
    record.setdefault("sittings", []).append(sitting)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return status == 0 and bool(record.get("complete"))


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


def _pack() -> int:
    sys.path.insert(0, str(ROOT / "src"))
    import sheets  # noqa: PLC0415
    from gpu_parts import SHEETS  # noqa: PLC0415

    from dent import data  # noqa: PLC0415

    found: Any = data.load("cifar10", "train")
    for folder in sheets.pack(found.pixels, found.labels, SHEETS):
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{size:>12,}  {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
