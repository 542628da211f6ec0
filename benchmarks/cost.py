"""What a defense costs, in static forwards of the same model and batch: `make bench`.

All contestants take turns within every round, so that a machine whose speed drifts drifts for all
of them; the figures are medians over rounds of each contestant's ratio to the static forward of the
same round, with their quartiles. Absolute times are not reported.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from baseline import PlainDent
from torch import Tensor

from dent import DENT, DENT_NOMINAL, DENT_PLUS, Dent, models


def contestants(model: torch.nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name everything that is measured; "static" is what the others are divided by."""
    runs: dict[str, Callable[[Tensor], Tensor]] = {"static": model}
    for steps in (1, 10):
        runs[f"dent, {steps} steps"] = Dent(model, replace(DENT, steps=steps))
    runs["dent, 10 steps, test statistics"] = Dent(
        model, replace(DENT, steps=10, statistics="test")
    )
    runs["dent-nominal, 10 steps"] = Dent(model, DENT_NOMINAL)
    runs["dent+, 6 steps"] = Dent(model, DENT_PLUS)
    runs["plain listing, 10 steps"] = PlainDent(model, 10, test_statistics=False)
    runs["plain listing, 10 steps, test statistics"] = PlainDent(model, 10, test_statistics=True)
    return runs


def measure(
    runs: dict[str, Callable[[Tensor], Tensor]], x: Tensor, rounds: int
) -> dict[str, list[float]]:
    """Return each contestant's ratio to the static forward, one per round, after a warm-up."""
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        seconds = {}
        for name, run in runs.items():
            with torch.no_grad():
                start = time.perf_counter()
                run(x)
                seconds[name] = time.perf_counter() - start
        if round_:
            for name, value in seconds.items():
                ratios[name].append(value / seconds["static"])
    return ratios


def main() -> None:
    """Measure, print a table, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet-14-2", help="family name, random weights")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"))
    options = parser.parse_args()
    model = models.resnet(options.model).eval()
    x = torch.rand(options.batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ratios = measure(contestants(model), x, options.rounds)
    figures = {}
    print(
        f"{options.model}, batch {options.batch_size}, {torch.get_num_threads()} threads, float32"
    )
    print(f"{'':42}{'median':>8}{'quartiles':>16}   static forwards")
    for name, values in ratios.items():
        low, median, high = statistics.quantiles(values, n=4)
        figures[name] = {"median": median, "lower_quartile": low, "upper_quartile": high}
        print(f"{name:42}{median:8.1f}{low:8.1f} to {high:.1f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {"model": options.model, "batch_size": options.batch_size, "rounds": options.rounds}
    options.out.write_text(json.dumps({"settings": settings, "ratios": figures}, indent=2))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
