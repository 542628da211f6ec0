"""The bench of `make gpu`: milliseconds, static forwards and peak memory of the defenses.

Every measurement is interleaved with its own static forwards, and is saved as soon as it is done.
The most informative ones come first. Those for which the time does not suffice are listed as left
out.
"""

import gc
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from attack import query
from baseline import PlainDent, PlainDentPlus
from contestants import LISTING, SETTINGS
from gpu_job import Job
from rounds import interleaved, quartiles, ratios
from torch import Tensor, nn
from torchvision.models import resnet50

from dent import DENT, DENT_PLUS, CompileWarning, Dent, DentConfig, ThreatModel, models
from dent.attacks import make
from dent.models.autoattack_resnet18 import ResNet18

DEFENSES: Final[dict[str, DentConfig]] = {
    "dent+, 6 steps": DENT_PLUS,
    "dent, 10 steps": replace(DENT, steps=10),
    "dent, 30 steps": replace(DENT, steps=30),
    "dent, 10 steps, sample-wise": replace(DENT, steps=10, granularity="sample"),
    "dent+, 6 steps, batch-wise": replace(DENT_PLUS, granularity="batch"),
}
LISTINGS: Final[dict[str, Callable[[nn.Module], nn.Module]]] = {
    "dent+, 6 steps": lambda model: PlainDentPlus(model, 6),
    "dent, 10 steps": lambda model: PlainDent(model, 10, test_statistics=False),
    "dent, 30 steps": lambda model: PlainDent(model, 30, test_statistics=False),
}
MODELS: Final[dict[str, Callable[[], nn.Module]]] = {
    "resnet-26-4": lambda: models.resnet("resnet-26-4"),
    "resnet-18": ResNet18,
    "resnet-50": resnet50,
    "resnet-8-1": lambda: models.resnet("resnet-8-1"),
}
PHASES: Final = ((LISTING, "default", "bfloat16"), ("compiled", "compiled bfloat16"))
"""Groups of settings in the order of measurement; compilation is slow, so it comes last."""
ROUNDS: Final = 5
_ENOUGH: Final = 4.0
"""Seconds that the rounds of one measurement may take; slow measurements get fewer rounds."""


@dataclass(frozen=True)
class Cell:
    """A model at an image size and a batch size."""

    model: str
    side: int
    batch_size: int

    @property
    def title(self) -> str:
        """The name of the cell in the record."""
        return f"{self.model} at {self.side}, batch {self.batch_size}"

    def load(self, device: torch.device) -> tuple[nn.Module, Tensor]:
        """Return the model with random weights, and a random batch, on a device."""
        torch.manual_seed(0)
        model = MODELS[self.model]().eval().to(device)
        x = torch.rand(self.batch_size, 3, self.side, self.side)
        return model, x.to(device)


CELLS: Final = (
    Cell("resnet-26-4", 32, 128),
    Cell("resnet-50", 288, 16),
    Cell("resnet-18", 32, 128),
    Cell("resnet-26-4", 32, 512),
    Cell("resnet-50", 224, 64),
    Cell("resnet-18", 32, 512),
)
SMALL: Final = (Cell("resnet-8-1", 16, 4),)


def run(job: Job) -> None:
    """Measure until everything is done or the time is over."""
    cells = SMALL if job.small else CELLS
    phases = PHASES[:1] if job.small else PHASES
    cost: dict[str, dict[str, Any]] = job.done.setdefault("cost", {})
    for number, phase in enumerate(phases):
        for cell in cells:
            _measure(job, cell, phase, cost.setdefault(cell.title, {}))
        if not number:
            _attacks(job, cells[0])
    wanted = {
        f"{cell.title}: {what}, {setting}"
        for cell in cells
        for phase in phases
        for what, setting in _wanted(phase)
    }
    there = {f"{title}: {name}" for title, figures in cost.items() for name in figures}
    job.keep(left_out=sorted(wanted - there), complete=not wanted - there and "attack" in job.done)
    show(job.done)


def _wanted(phase: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for what in DEFENSES:
        for setting in phase:
            if setting != LISTING or what in LISTINGS:
                yield what, setting


def _measure(job: Job, cell: Cell, phase: tuple[str, ...], figures: dict[str, Any]) -> None:
    missing = [each for each in _wanted(phase) if ", ".join(each) not in figures]
    if not missing or job.left() < 1:
        return
    model, x = cell.load(job.device)
    listed: dict[str, Tensor] = {}
    for what, setting in missing:
        if job.left() < 1:
            break
        torch._dynamo.reset()  # the graphs of all cells together exceed the limit of PyTorch
        try:
            if what in LISTINGS and what not in listed:
                with torch.no_grad():
                    listed[what] = LISTINGS[what](model)(x)
            defense = (
                LISTINGS[what](model)
                if setting == LISTING
                else Dent(model, DEFENSES[what], SETTINGS[setting])
            )
            with warnings.catch_warnings():
                warnings.simplefilter("error", CompileWarning)  # no eager figure under that name
                cost = cost_of(job, model, defense, x, listed.get(what))
        except Exception as error:  # the other measurements must still run
            cost = {"failed": f"{type(error).__name__}: {error}".split("\n")[0]}
        figures[f"{what}, {setting}"] = cost
        job.keep()


def cost_of(
    job: Job, model: nn.Module, defense: nn.Module, x: Tensor, listed: Tensor | None
) -> dict[str, Any]:
    """Return the time of a prediction in milliseconds and in static forwards, and its peak memory.

    Args:
        job: The part that is run.
        model: The static model.
        defense: The defense to measure.
        x: A batch (N, C, H, W).
        listed: The logits of the paper's listing, with which those of the defense are compared;
            None if there is no listing of this defense.
    """

    def ask(module: nn.Module) -> None:
        module(x)
        job.settled()

    with torch.no_grad():
        began = time.perf_counter()
        ask(defense)  # warms up and compiles
        first = time.perf_counter() - began
        memory = peak(job, partial(ask, defense))
        logits = defense(x)
        began = time.perf_counter()
        ask(defense)
        rounds = (
            1 if job.small else min(ROUNDS, max(2, int(_ENOUGH / (time.perf_counter() - began))))
        )
        times = interleaved({"static": partial(ask, model), "it": partial(ask, defense)}, rounds)
    low, median, high = ratios(times["it"], times["static"])
    return {
        "milliseconds": 1000 * quartiles(times["it"])[1],
        "static_milliseconds": 1000 * quartiles(times["static"])[1],
        "static_forwards": median,
        "quartiles": [low, high],
        "first_seconds": first,
        "peak_mb": memory,
        "apart": None if listed is None else float((logits - listed).abs().max()),
        "same_predictions": None
        if listed is None
        else float((logits.argmax(1) == listed.argmax(1)).float().mean()),
    }


def peak(job: Job, run: Callable[[], object]) -> float | None:
    """Return by how many MB a call raises the peak of the device's memory; None on a CPU."""
    if job.device.type != "cuda":
        run()
        return None
    gc.collect()
    torch.cuda.reset_peak_memory_stats(job.device)
    before = torch.cuda.memory_allocated(job.device)
    run()
    return (torch.cuda.max_memory_allocated(job.device) - before) / 2**20


def _attacks(job: Job, cell: Cell) -> None:
    """Measure APGD's queries per second through dent+ and the listing, and the exact gradient."""
    if "attack" in job.done or job.left() < 1:
        return
    model, x = cell.load(job.device)
    with torch.no_grad():
        y = model(x).argmax(1)
    apgd = make("apgd-ce", iterations=2 if job.small else 10)
    found: dict[str, Any] = {}
    for name, defense in {
        "static": model,
        LISTING: LISTINGS["dent+, 6 steps"](model).eval(),
        "default": Dent(model, DENT_PLUS),
    }.items():
        threat = ThreatModel("linf", "1/2550")  # so few are fooled that all queries are made
        if not job.small:
            apgd(defense, x, y, threat, seed=0)
        job.settled()
        began = time.perf_counter()
        result = apgd(defense, x, y, threat, seed=0)
        job.settled()
        seconds = time.perf_counter() - began
        found[name] = {
            "queries": result.queries,
            "seconds": seconds,
            "queries_a_second": result.queries / seconds,
            "fell": int(result.fooled.sum()),
        }
    dent = Dent(model, DENT_PLUS)
    for name, exact in {"stop-gradient": False, "exact": True}.items():
        ask = partial(query, dent, x, y, exact=exact)
        memory = peak(job, ask)
        seconds_of = []
        for _ in range(1 if job.small else 3):
            job.settled()
            began = time.perf_counter()
            ask()
            job.settled()
            seconds_of.append(time.perf_counter() - began)
        found[f"{name} query"] = {
            "milliseconds": 1000 * statistics.median(seconds_of),
            "peak_mb": memory,
        }
    job.keep(attack={"cell": cell.title, **found})


def show(record: Mapping[str, Any]) -> None:
    """Print the measurements as tables."""
    for title, figures in record["cost"].items():
        print(f"\n{title}\n{'':48}{'ms':>10}{'forwards':>10}{'faster':>8}{'MB':>8}")
        for name, each in figures.items():
            if "failed" in each:
                print(f"{name:48}  {each['failed']}")
                continue
            what = name.rpartition(", ")[0] if LISTING not in name else None
            listing = figures.get(f"{what}, {LISTING}", {}).get("milliseconds")
            faster = "" if listing is None else f"{listing / each['milliseconds']:.2f}"
            memory = "" if each["peak_mb"] is None else f"{each['peak_mb']:.0f}"
            print(
                f"{name:48}{each['milliseconds']:10.2f}{each['static_forwards']:10.2f}"
                f"{faster:>8}{memory:>8}"
            )
    print(json.dumps(record.get("attack"), indent=1))
