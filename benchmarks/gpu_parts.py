"""The tests, the trainings and the verdict of `make gpu`."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, final

import sheets
import torch
from gpu_job import Job
from torch import Tensor

from dent import Dent, ThreatModel, data, models, training
from dent.attacks import make
from dent.data import store
from dent.data.dataset import ArrayDataset, ImageDataset
from dent.errors import DataError, WeightsError
from dent.evaluation import Progress, Settings, Subject, evaluate, suite
from dent.training.loop import read_metrics

ROOT: Final = Path(__file__).parent.parent
SHEETS: Final = ROOT / ".sheets"
"""Folder in which the parts of the training set are carried; git ignores it."""
TESTS: Final = (
    "tests/test_golden.py",
    "tests/test_gpu.py",
    "tests/test_behaviour.py",
    "tests/attacks/test_attack_contract.py",
    "tests/evaluation/test_evaluation_suite.py",
    "tests/evaluation/test_evaluation_run.py",
)
RECIPES: Final = ("fast-linf", "fast-nominal", "fast-l2")
ARCHITECTURE: Final = "resnet-26-4"
EPOCHS: Final = 30
SUBSTITUTE: Final = "resnet-14-2-linf"
"""The model that is evaluated until a net has been trained."""
VERDICT_ON: Final = 1000
"""Number of images for which the time is extrapolated."""
_PIECE: Final = 15 * 2**20
"""Largest size of a piece of a weights file, in bytes. Weights are brought back in pieces."""


class OutOfTimeError(Exception):
    """The time of the part is over. The same command continues it."""


def tests(job: Job) -> None:
    """Run the tests on the device, file by file."""
    files: dict[str, Any] = job.done.setdefault("files", {})
    for name in TESTS[:1] if job.small else TESTS:
        if files.get(name, {}).get("status") == 0:
            continue
        if job.left() < 5:
            files[name] = {"status": None, "summary": "left out: no time"}
            continue
        files[name] = _pytest(name, job)
        print(f"{name}: {files[name]['summary']}", flush=True)
        job.keep()
    job.keep(complete=all(each["status"] == 0 for each in files.values()))


def _pytest(name: str, job: Job) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
    command += ["-m", "not slow and not network", "-k", "not resnet18-nominal" if _light() else ""]
    if job.device.type == "cuda" and find_spec("xdist"):
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    environment = os.environ | {"DENT_TEST_DEVICE": str(job.device), "OMP_NUM_THREADS": "1"}
    log = job.out / "logs" / f"{Path(name).stem}.log"
    log.parent.mkdir(exist_ok=True)
    began = time.monotonic()
    with log.open("w") as file:
        try:
            status: int | None = subprocess.run(  # noqa: S603 - our own tests
                command,
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=job.left(),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    lines = log.read_text().splitlines()
    return {
        "status": status,
        "seconds": round(time.monotonic() - began, 1),
        "summary": lines[-1] if lines else "",
        "failed": [line[:300] for line in lines if re.match("FAILED|ERROR", line)],
    }


def _light() -> bool:
    """Return whether `wheels.lighten` has removed the weights of `resnet18-nominal`."""
    try:
        models.load("resnet18-nominal")
    except WeightsError:
        return True
    return False


@final
class OnDevice(ImageDataset):
    """A dataset whose pixels are on a device, so that batches are gathered there."""

    def __init__(self, dataset: ArrayDataset, device: torch.device) -> None:
        self.name, self.split, self.classes = dataset.name, dataset.split, dataset.classes
        self.digest, self.sample_ids = dataset.digest, dataset.sample_ids
        self._pixels = torch.tensor(dataset.pixels).permute(0, 3, 1, 2).contiguous().to(device)
        self._labels = torch.tensor(dataset.labels).to(device)
        # A lookup table in place of a division, because a device may round a quotient differently.
        self._shares = (torch.arange(256, dtype=torch.float32) / 255).to(device)

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the images and labels at some positions, on the device."""
        rows = torch.tensor(indices, dtype=torch.int64).to(self._labels.device)
        return self._shares[self._pixels[rows].int()], self._labels[rows]


def train(job: Job) -> None:
    """Train by one recipe after the other. Each training continues where it stopped."""
    small = job.small
    found = training_set(small=small)
    watch = data.load("cifar10-sample")
    dataset = OnDevice(found, job.device)
    handle = training.accelerator(None if job.device.type == "cuda" else "cpu")
    runs: dict[str, Any] = job.done.setdefault("trainings", {})

    def report(_: object) -> None:
        if job.left() < 0:
            raise OutOfTimeError

    for name in RECIPES[:1] if small else RECIPES:
        folder = job.out / f"train-{name}"
        changes: dict[str, Any] = {"epochs": 1, "batch_size": 8} if small else {"epochs": EPOCHS}
        try:
            result = training.train(
                "resnet-8-1" if small else ARCHITECTURE,
                training.named(name, **changes),
                dataset,
                watch,
                folder,
                handle,
                watched=4 if small else len(watch),
                watch_steps=1 if small else 10,
                progress=report,
            )
        except OutOfTimeError:
            runs[name] = {"complete": False, "epochs": read_metrics(folder)}
            job.keep(complete=False)
            return
        runs[name] = {
            "complete": True,
            "seconds": result.seconds,
            "best_epoch": result.best_epoch,
            "stopped": result.stopped,
            "epochs": result.metrics,
            "weights": [piece.name for piece in cut(result.best, job.out, name)],
        }
        job.keep()
    job.keep(complete=True)


def training_set(*, small: bool) -> ArrayDataset:
    """Return CIFAR-10's train split, from the carried parts if the dataset is not on this machine.

    The small one is 16 images of the bundled sample.
    """
    if small:
        sample = data.load("cifar10-sample")
        assert isinstance(sample, ArrayDataset)
        return sample.subset(range(16))
    path = data.data_root() / "cifar10-train.safetensors"
    try:
        found = data.load("cifar10", "train", download=False)
    except DataError:
        pixels, labels = sheets.unpack(SHEETS)
        store.write(path, store.encode({"pixels": pixels, "labels": labels}))
        found = data.load("cifar10", "train", download=False)  # this checks its digest
    assert isinstance(found, ArrayDataset)
    return found


def cut(path: Path, out: Path, name: str) -> list[Path]:
    """Cut a file into pieces that are small enough to be brought back; `cat NAME.*` joins them."""
    content = path.read_bytes()
    pieces = []
    for number, at in enumerate(range(0, len(content), _PIECE)):
        piece = out / f"{name}.{number:02}"
        piece.write_bytes(content[at : at + _PIECE])
        pieces.append(piece)
    return pieces


def verdict(job: Job) -> None:
    """Evaluate dent+ under the dynamic suite, or as much of it as the time allows."""
    small = job.small
    name, model = _evaluated(job)
    images = data.load("cifar10-sample")
    settings = Settings(n=4, batch_size=4) if small else Settings(n=len(images), batch_size=128)
    attacks = (make("apgd-ce", iterations=2),) if small else suite("dynamic", "standard")
    subject = Subject(
        model, images, {"dent+": Dent(model)}, attacks, ThreatModel("linf", "8/255"), name
    )
    last: list[Progress] = []

    def report(progress: Progress) -> None:
        last[:] = [progress]
        if job.left() < 0:
            raise OutOfTimeError

    began = time.monotonic()
    result = None
    with suppress(OutOfTimeError):
        result = evaluate(subject, settings, out=job.out / "verdict", progress=report)
    seconds = job.done.get("seconds_computed", 0.0) + time.monotonic() - began
    remaining = last[-1].remaining if last else 0.0
    images_done = settings.n or len(images)
    job.keep(
        model=name,
        images=images_done,
        seconds_computed=seconds,
        share=last[-1].share if last else 1.0,
        remaining=remaining,
        extrapolated={
            "images": VERDICT_ON,
            "seconds": None
            if remaining is None
            else (seconds + remaining) * VERDICT_ON / images_done,
        },
        result=None if result is None else result.to_json(),
        complete=result is not None,
    )
    print(job.done["extrapolated"], flush=True)


def _evaluated(job: Job) -> tuple[str, torch.nn.Module]:
    trained = job.out / f"train-{RECIPES[0]}" / "best.safetensors"
    if job.small:
        torch.manual_seed(0)
        return "resnet-8-1", models.resnet("resnet-8-1").eval().to(job.device)
    if trained.exists():
        return ARCHITECTURE, models.load(ARCHITECTURE, weights=trained, device=job.device)
    return SUBSTITUTE, models.load(SUBSTITUTE, device=job.device)
