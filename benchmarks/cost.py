"""The cost of a defense, in static forwards of the same model and batch.

Within a cell (a model and a batch size), all contestants take turns in every round. The figures are
the median and quartiles over rounds of a contestant's time divided by the static forward of the
same round (eager, in the model's original memory format). Absolute times are not reported for
cells.

The last part compares our default with the plain listing on every model of the behaviour suite.

Each cell is saved when it is done. The same command then continues with the others.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from baseline import PlainDent, PlainDentPlus
from contestants import LISTING, SETTINGS, Contestant, contestants
from memory import peak_of, rise
from rounds import interleaved, quartiles, ratios
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dent import DENT, DENT_PLUS, CompileWarning, Dent, models

ROOT: Final = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.small_models import BATCH_NORM, MODELS  # noqa: E402 - from the checkout, no package

TABLE_14: Final = {0: 1.0, 1: 3.4, 5: 12.8, 10: 25.3, 20: 49.1, 30: 75.9, 40: 99.9, 50: 125.3}
"""Cost by number of steps, in static forwards: the paper's ResNet-50 on ImageNet, at 288 x 288, in
batches of 16."""

STEPS: Final = (1, 5, 10, 20, 30, 40, 50)


@dataclass(frozen=True)
class Cell:
    """A model at a batch size.

    Attributes:
        model: A name of `dent models`, or of an architecture, which gets random weights.
        batch_size: Number of images.
        steps: Numbers of steps of dent.
        settings: Names in `SETTINGS`.
        memory: Whether to measure the peak memory as well.
    """

    model: str
    batch_size: int
    steps: tuple[int, ...] = (10,)
    settings: tuple[str, ...] = tuple(SETTINGS)
    memory: bool = False

    @property
    def title(self) -> str:
        """The name of the cell in the record."""
        return f"{self.model}, batch {self.batch_size}"

    def load(self) -> tuple[nn.Module, Tensor]:
        """Return the model and a random batch."""
        known = self.model in models.names()
        model = (models.load(self.model) if known else models.resnet(self.model)).eval()
        generator = torch.Generator().manual_seed(0)
        return model, torch.rand(self.batch_size, 3, 32, 32, generator=generator)


CELLS: Final = (
    Cell("resnet-14-2-linf", 128, memory=True),
    Cell("resnet-14-2-linf", 16, STEPS, ("preserve", "default", "compiled", "compiled bfloat16")),
    Cell("resnet-14-2-linf", 1, settings=("preserve", "default", "compiled")),
    Cell("resnet-26-4", 16, settings=("default", "compiled", "compiled bfloat16")),
)
SHORT: Final = (Cell("resnet-14-2-linf", 8, (1, 10), ("preserve", "default")),)


def measure(cell: Cell, rounds: int) -> dict[str, Any]:
    """Measure one cell, and return its figures by contestant."""
    model, x = cell.load()
    runs = contestants(model, cell.steps, cell.settings)
    with torch.no_grad():
        times = interleaved({name: partial(each.run, x) for name, each in runs.items()}, rounds)
    (static, *_) = times.values()
    once = operations(model, x[:2])
    figures = {}
    for name, each in runs.items():
        low, median, high = ratios(times[name], static)
        compiled = "compiled" in each.setting  # the counter does not see compiled operations
        figures[name] = {
            "what": each.what,
            "setting": each.setting,
            "median": median,
            "lower_quartile": low,
            "upper_quartile": high,
            "floor": 2 * each.steps + 1,
            "faster": _faster(each, times),
            "operations": None if compiled else operations(each.run, x[:2]) / once,
            "memory": _memory(cell, each) if cell.memory else None,
            "paper": TABLE_14.get(each.steps) if each.what.startswith("dent,") else None,
        }
    return figures


def _faster(one: Contestant, times: Mapping[str, Sequence[float]]) -> float | None:
    """Return how many times faster it is than the listing of its defense in the same rounds."""
    listing = times.get(f"{one.what}, {LISTING}")
    return None if listing is None else ratios(listing, times[one.name])[1]


def operations(run: Any, x: Tensor) -> int:
    """Return the number of floating-point operations of a call, by PyTorch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(x)
    return int(counter.get_total_flops())


def _memory(cell: Cell, one: Contestant) -> float | None:
    if one.setting not in ("eager", "default", "compiled", LISTING):
        return None
    if one.what not in ("static", "dent, 10 steps", "dent+, 6 steps"):
        return None
    return peak_of(__file__, "--peak", cell.model, str(cell.batch_size), one.name)


def print_peak(model: str, batch_size: str, name: str) -> None:
    """Print by how many MB one call of a contestant raises the peak memory of this process."""
    cell = Cell(model, int(batch_size))
    loaded, x = cell.load()
    with torch.no_grad():
        run = contestants(loaded, cell.steps, cell.settings)[name].run
        print(rise(partial(run, x)))


def everywhere(batch_size: int, rounds: int) -> dict[str, Any]:
    """Return how many times faster our default is than the listing, by model of the test suite."""
    found: dict[str, Any] = {}
    x = torch.rand(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name, build in MODELS.items():
        torch.manual_seed(0)
        model = build().eval()
        ours = {"dent": Dent(model, DENT)}
        listing: dict[str, nn.Module] = {
            "dent": PlainDent(model, DENT.steps, test_statistics=False)
        }
        if name in BATCH_NORM:
            ours["dent+"] = Dent(model, DENT_PLUS)
            listing["dent+"] = PlainDentPlus(model, DENT_PLUS.steps)
        for what, defense in ours.items():
            runs = {"ours": partial(defense, x), "listing": partial(listing[what], x)}
            with torch.no_grad():
                times = interleaved(runs, rounds)
            low, median, high = ratios(times["listing"], times["ours"])
            found[f"{name}, {what}"] = {
                "faster": median,
                "quartiles": [low, high],
                "milliseconds": quartiles(times["ours"])[1] * 1000,
            }
    return found


def show(title: str, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the figures of a cell."""
    print(f"\n{title}\n{'':48}{'median':>8}{'quartiles':>16}{'floor':>7}{'faster':>8}{'MB':>8}")
    for name, each in figures.items():
        spread = f"{each['lower_quartile']:.1f} to {each['upper_quartile']:.1f}"
        faster = "" if each["faster"] is None else f"{each['faster']:.2f}"
        memory = "" if each["memory"] is None else f"{each['memory']:.0f}"
        print(f"{name:48}{each['median']:8.1f}{spread:>16}{each['floor']:7}{faster:>8}{memory:>8}")


def main() -> None:
    """Measure, print tables, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="one small cell, nothing compiled")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/cost.json"))
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("error", CompileWarning)  # no eager figure under a compiled name
    if options.peak is not None:
        print_peak(*options.peak)
        return
    rounds = 3 if options.short else options.rounds
    threads = torch.get_num_threads()
    record: dict[str, Any] = {"rounds": rounds, "threads": threads, "cells": {}, "everywhere": {}}
    if options.out.exists() and not options.short:
        record = json.loads(options.out.read_text())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for cell in SHORT if options.short else CELLS:
        if cell.title not in record["cells"]:
            record["cells"][cell.title] = measure(cell, rounds)
            options.out.write_text(json.dumps(record, indent=1))
        show(cell.title, record["cells"][cell.title])
        sys.stdout.flush()
    if not options.short:
        for batch_size in (3, 64):
            if f"batch {batch_size}" not in record["everywhere"]:
                record["everywhere"][f"batch {batch_size}"] = everywhere(batch_size, rounds)
                options.out.write_text(json.dumps(record, indent=1))
    for title, models_ in record["everywhere"].items():
        print(f"\nour default beside the listing, {title}: times faster")
        for name, each in models_.items():
            print(f"{name:40}{each['faster']:8.2f}{each['milliseconds']:10.1f} ms")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
