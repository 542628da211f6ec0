"""What the evaluation itself costs, beyond attacks and defenses: `python benchmarks/engine.py`.

Every round does the same work twice, in turns: by `evaluate` with all its records on disk, and by a
bare loop that only runs the same attacks and submits the same batches. The figure is the median
over rounds of the extra time of `evaluate`, as a share of the bare loop's. It contains the plan,
records, tensors, digests and traces, and also the probe, which the bare loop does not have.

`--memory` instead measures how the peak memory grows with the size of the dataset. Each size runs
in its own process, on images that are generated on access.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rounds import quartiles
from torch import Tensor, nn

from dent import DENT, DENT_PLUS, Dent, ThreatModel, data, models
from dent.attacks import answer, make
from dent.data import ImageDataset
from dent.evaluation import Settings, Subject, evaluate
from dent.evaluation.records.plan import seed_of

THREAT = ThreatModel("linf", "1.5/255")


class Made(ImageDataset):
    """A dataset of any size, whose images are generated on access."""

    def __init__(self, size: int) -> None:
        self.name, self.split, self.classes = "made", "test", tuple("0123456789")
        self.sample_ids = range(size)
        self.digest = hashlib.sha256(str(size).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.sample_ids)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images and labels that depend only on their positions."""
        draws = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in indices]
        return torch.stack(draws), torch.tensor([i % 10 for i in indices])


def subject_of(model: nn.Module, images: ImageDataset, attack: str, iterations: int) -> Subject:
    """Return a subject: the static model, dent with 2 steps, and dent+, under one attack."""
    few = replace(DENT, steps=2)
    defenses = {"dent": Dent(model, few), "dent+": Dent(model, DENT_PLUS)}
    return Subject(model, images, defenses, [make(attack, iterations=iterations)], THREAT)


def bare(subject: Subject, settings: Settings) -> float:
    """Run the attacks and submissions of an evaluation without records; return the seconds."""
    start = time.perf_counter()
    (attack,) = subject.attacks
    with torch.no_grad():
        for first in range(0, settings.n or 0, settings.batch_size):
            last = min(first + settings.batch_size, settings.n or 0)
            x, y = subject.dataset.batch(range(first, last))
            found: dict[str, Tensor] = {}
            for name, defense in {"static": subject.model, **subject.defenses}.items():
                if name != "static":
                    subject.model(x)  # `evaluate` measures the relative cost by this forward
                answer(defense, x)
                seed = seed_of(settings.seed, "unit", first // settings.batch_size, attack.name)
                found[name] = attack(defense, x, y, subject.threat, seed=seed).adversarial
                answer(defense, found[name])
                if name != "static":
                    answer(defense, found["static"])  # the transfer
                    answer(defense, found[name])  # the assembled batch
    return time.perf_counter() - start


def whole(subject: Subject, settings: Settings) -> float:
    """Do the same with `evaluate`, into a folder; return the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        evaluate(subject, settings, out=Path(folder) / "run")
        return time.perf_counter() - start


def overhead(options: argparse.Namespace) -> dict[str, float]:
    """Return median and quartiles of the extra time of `evaluate`, as a share of the bare loop."""
    model = models.load(options.model)
    subject = subject_of(model, data.load("cifar10-sample"), "apgd-ce", options.iterations)
    settings = Settings(n=options.n, batch_size=options.batch_size)
    shares = []
    for round_ in range(options.rounds + 1):
        turns = (bare, whole) if round_ % 2 else (whole, bare)
        seconds = {turn.__name__: turn(subject, settings) for turn in turns}
        if round_:  # the first one warms up
            shares.append(seconds["whole"] / seconds["bare"] - 1)
    low, middle, high = quartiles(shares)
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def peak(size: int) -> float:
    """Evaluate `size` generated images in this process; return its peak memory in MB."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 225, 10)
    ).eval()
    subject = subject_of(model, Made(size), "pgd", 1)
    with tempfile.TemporaryDirectory() as folder:
        evaluate(subject, Settings(batch_size=64, tensors="drop"), out=Path(folder) / "run")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure, print, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18-nominal", help="a name of `dent models`")
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-engine.json"))
    options = parser.parse_args()
    if options.peak is not None:
        print(peak(options.peak))
        return
    figures: dict[str, float]
    if options.memory:
        figures = {}
        for size in options.sizes:
            ran = subprocess.run(  # noqa: S603 - this very script
                [sys.executable, __file__, "--peak", str(size)],
                capture_output=True,
                text=True,
                check=True,
            )
            figures[str(size)] = float(ran.stdout)
            print(f"{size:6} samples: peak of {figures[str(size)]:.0f} MB")
    else:
        figures = overhead(options)
        print(f"evaluate takes {figures['median']:+.1%} beside a bare loop of the same work")
        print(f"quartiles {figures['lower_quartile']:+.1%} to {figures['upper_quartile']:+.1%}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {key: str(value) for key, value in vars(options).items() if key != "peak"}
    options.out.write_text(json.dumps({"settings": settings, "figures": figures}, indent=2))


if __name__ == "__main__":
    main()
