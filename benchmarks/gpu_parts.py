"""The tests, the verdict and the trainings of `make gpu`."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Final, final

import sheets
import torch
from gpu_job import Job
from gpu_paths import ROOT, SHEETS
from torch import Tensor

from dent import Dent, ThreatModel, data, models, training
from dent.attacks import make
from dent.data import store
from dent.data.dataset import ArrayDataset, ImageDataset
from dent.errors import DataError, WeightsError
from dent.evaluation import EvaluationResult, Progress, Settings, Subject, evaluate, suite
from dent.training.loop import read_metrics
from dent.training.state import write_half

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
EVALUATED: Final = "resnet-26-4-linf"
"""The bundled model that is evaluated."""
VERDICT_ON: Final = 1000
"""Number of images for which the time is extrapolated."""
_OFTEN: Final = 5.0
"""Seconds after which a part that runs writes its record again."""
_LOG: Final = 60_000
"""Number of characters of the log of failed tests in the record."""
_WORKERS: Final = 12
_WORDS: Final = "(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)"
_RESULTS: Final = (
    re.compile(rf"^\[gw\d+\] \[ *\d+%\] {_WORDS} (tests/\S+?\.py)::", re.M),
    re.compile(rf"^(tests/\S+?\.py)::.*? {_WORDS}\b.*\[ *\d+%\]$", re.M),
)
"""A line of pytest about one test: with pytest-xdist, and without."""


class OutOfTimeError(Exception):
    """The time of the part is over. The same command continues it."""


def tests(job: Job) -> None:
    """Run the tests on the device."""
    names = TESTS[:1] if job.small else TESTS
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb=short", *names]
    command += ["-m", "not slow and not network", "-k", "not resnet18-nominal" if _light() else ""]
    if job.device.type == "cuda" and find_spec("xdist"):
        command += ["-n", str(min(_WORKERS, os.cpu_count() or 1))]
    environment = os.environ | {"DENT_TEST_DEVICE": str(job.device), "OMP_NUM_THREADS": "1"}
    log = job.out / "logs" / "tests.log"
    log.parent.mkdir(exist_ok=True)
    began = time.monotonic()
    status: int | None = None
    with (
        log.open("w") as file,
        subprocess.Popen(  # noqa: S603 - our own tests
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        ) as process,
    ):
        while status is None and job.left() > 0:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(min(_OFTEN, max(0.1, job.left())))
            job.keep(status=status, files=_results(log.read_text()))
        process.kill()
    text = log.read_text()
    lines = text.splitlines()
    job.keep(
        status=status,
        seconds=round(time.monotonic() - began, 1),
        summary=lines[-1] if lines else "",
        failed=[line[:300] for line in lines if re.match("FAILED|ERROR", line)],
        log=None if status == 0 else text[-_LOG:],
        complete=status == 0,
    )
    print(job.done["summary"], flush=True)


def _results(log: str) -> dict[str, dict[str, int]]:
    """Return by file how many tests have passed so far, how many failed, and so on."""
    beside, alone = _RESULTS
    pairs = [(file, word) for word, file in beside.findall(log)] or alone.findall(log)
    found: dict[str, dict[str, int]] = {}
    for file, word in pairs:
        counts = found.setdefault(file, {})
        counts[word.lower()] = counts.get(word.lower(), 0) + 1
    return found


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
        if runs.get(name, {}).get("complete"):
            continue
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
        weights = job.out / f"{name}.safetensors"
        write_half(weights, result.best.read_bytes())
        runs[name] = {
            "complete": True,
            "seconds": result.seconds,
            "best_epoch": result.best_epoch,
            "stopped": result.stopped,
            "epochs": result.metrics,
            "weights": weights.name,
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


def verdict(job: Job) -> None:
    """Evaluate dent+ under the dynamic suite, or as much of it as the time allows."""
    small = job.small
    torch.manual_seed(0)
    name = "resnet-8-1" if small else EVALUATED
    net = models.resnet(name).eval() if small else models.load(name)
    model = net.to(job.device)
    images = data.load("cifar10-sample")
    settings = Settings(n=4, batch_size=4) if small else Settings(n=len(images), batch_size=128)
    attacks = (make("apgd-ce", iterations=2),) if small else suite("dynamic", "standard")
    subject = Subject(
        model, images, {"dent+": Dent(model)}, attacks, ThreatModel("linf", "8/255"), name
    )
    before = job.done.get("seconds_computed", 0.0)
    began = kept = time.monotonic()
    last: list[Progress] = []

    def keep(result: EvaluationResult | None = None) -> None:
        seconds = before + time.monotonic() - began
        remaining = last[-1].remaining if last else 0.0
        part = VERDICT_ON / (settings.n or len(images))
        job.keep(
            model=name,
            images=settings.n or len(images),
            seconds_computed=seconds,
            share=last[-1].share if last else 1.0,
            remaining=remaining,
            extrapolated={
                "images": VERDICT_ON,
                "seconds": None if remaining is None else (seconds + remaining) * part,
            },
            result=None if result is None else result.to_json(),
            complete=result is not None,
        )

    def report(progress: Progress) -> None:
        nonlocal kept
        last[:] = [progress]
        if time.monotonic() - kept > _OFTEN:
            kept = time.monotonic()
            keep()
        if job.left() < 0:
            raise OutOfTimeError

    result = None
    with suppress(OutOfTimeError):
        result = evaluate(subject, settings, out=job.out / "verdict", progress=report)
    keep(result)
    print(job.done["extrapolated"], flush=True)
