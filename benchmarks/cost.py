"""What a defense costs, in static forwards of the same model and batch: `make bench`.

Within a cell (a model and a batch size) all contestants take turns in every round, so that a
machine whose speed drifts drifts for all of them. The figures are medians over rounds of each
contestant's ratio to the static forward of the same round (eager, as the model comes), with their
quartiles. Absolute times are not reported.

A cell is written when it is done, and the same command again goes on with those that are not.
"""

import argparse
import html
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from baseline import PlainDent
from rounds import quartiles
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dent import DENT, DENT_NOMINAL, DENT_PLUS, Dent, Performance, models

TABLE_14 = {0: 1.0, 1: 3.4, 5: 12.8, 10: 25.3, 20: 49.1, 30: 75.9, 40: 99.9, 50: 125.3}
"""Relative cost by steps: the paper's ResNet-50 on ImageNet, 288 x 288, batches of 16."""

PLAIN = Performance(memory_format="preserve")
SETTINGS = {
    "plain": PLAIN,
    "default": Performance(),
    "compiled": Performance(compile=True),
    "bfloat16": Performance(precision="bfloat16"),
    "compiled bfloat16": Performance(compile=True, precision="bfloat16"),
}
Run = Callable[[Tensor], Tensor]


def contestants(
    model: nn.Module, steps: list[int], settings: list[str]
) -> dict[str, tuple[int, Run]]:
    """Name what is measured, with its steps; "static" is what the others are divided by."""
    runs: dict[str, tuple[int, Run]] = {"static": (0, model)}
    for name in settings:
        performance = SETTINGS[name]
        for count in steps:
            defense = Dent(model, replace(DENT, steps=count), performance)
            runs[f"dent, {count} steps, {name}"] = count, defense
        runs[f"dent+, 6 steps, {name}"] = 6, Dent(model, DENT_PLUS, performance)
        runs[f"dent-nominal, 10 steps, {name}"] = 10, Dent(model, DENT_NOMINAL, performance)
    for test_statistics in (False, True):
        what = "test statistics" if test_statistics else "train statistics"
        listing = PlainDent(model, 10, test_statistics=test_statistics)
        runs[f"the paper's listing, 10 steps, {what}"] = 10, listing
    return runs


def measure(runs: dict[str, tuple[int, Run]], x: Tensor, rounds: int) -> dict[str, list[float]]:
    """Return each contestant's ratio to the static forward, one per round, after a warm-up."""
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        seconds = {}
        for name, (_, run) in runs.items():
            with torch.no_grad():
                start = time.perf_counter()
                run(x)
                seconds[name] = time.perf_counter() - start
        print(f"  round {round_} of {rounds}{'' if round_ else ' (warm-up, compiles)'}", flush=True)
        if round_:
            for name, value in seconds.items():
                ratios[name].append(value / seconds["static"])
    return ratios


def operations(run: Run, x: Tensor) -> int:
    """Return how many floating-point operations a call takes, by PyTorch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(x)
    return int(counter.get_total_flops())


def cell(model_name: str, batch_size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one model at one batch size."""
    loaded = model_name in models.names()
    model = (models.load(model_name) if loaded else models.resnet(model_name)).eval()
    x = torch.rand(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    runs = contestants(model, options.steps, options.settings)
    ratios = measure(runs, x, options.rounds)
    once = operations(model, x[:2])
    figures = {}
    for name, values in ratios.items():
        steps, run = runs[name]
        low, median, high = quartiles(values)
        compiled = getattr(run, "performance", PLAIN).compile  # whose operations nobody sees
        figures[name] = {
            "median": median,
            "lower_quartile": low,
            "upper_quartile": high,
            "floor": 2 * steps + 1,
            "operations": None if compiled else operations(run, x[:2]) / once,
            "paper": TABLE_14.get(steps) if name.startswith(("dent,", "the paper")) else None,
        }
    return figures


def page(record: dict[str, Any]) -> str:
    """Return the figures as one HTML page that needs nothing else."""
    columns = ("median", "lower_quartile", "upper_quartile", "floor", "operations", "paper")
    heads = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in columns)
    tables = []
    for title, figures in record["cells"].items():
        rows = []
        for name, values in figures.items():
            shown = ["" if values[key] is None else f"{values[key]:.1f}" for key in columns]
            cells = "".join(f"<td>{text}</td>" for text in shown)
            rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
        tables.append(
            f"<h2>{html.escape(title)}</h2><table><tr><th></th>{heads}</tr>{''.join(rows)}</table>"
        )
    return (
        "<!doctype html><meta charset=utf-8><title>What a defense costs</title><style>"
        "body{font:16px system-ui;margin:2em}td{text-align:right;padding:0 1em}"
        "th{text-align:left;font-weight:normal}</style><h1>What a defense costs</h1>"
        "<p>In static forwards of the same model and batch: eager, float32, the layout the model "
        "comes in. Floor: 2 &times; steps + 1 such forwards. Operations: relative to one forward, "
        "counted for what is not compiled. Paper: Table 14, a ResNet-50 on ImageNet.</p>"
        f"<p>{html.escape(json.dumps(record['settings']))}</p>{''.join(tables)}\n"
    )


def main() -> None:
    """Measure, print a table, and write the figures as JSON and as a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet-14-2-linf"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5, 10, 20, 30, 40, 50])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS)[:3], choices=SETTINGS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="one small cell, nothing compiled")
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"))
    options = parser.parse_args()
    if options.short:
        options.batch_sizes, options.steps, options.rounds = [8], [1, 10], 3
        options.settings = ["plain", "default"]
    settings = {key: getattr(options, key) for key in ("steps", "settings", "rounds")}
    settings |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    record: dict[str, Any] = {"settings": settings, "cells": {}}
    if options.out.exists():
        known = json.loads(options.out.read_text())
        if known["settings"] == settings:
            record = known
    options.out.parent.mkdir(parents=True, exist_ok=True)
    cells = [(name, size) for name in options.models for size in options.batch_sizes]
    for index, (name, size) in enumerate(cells, 1):
        title = f"{name}, batch {size}"
        print(f"{index} of {len(cells)}: {title}", flush=True)
        if title not in record["cells"]:
            record["cells"][title] = cell(name, size, options)
            options.out.write_text(json.dumps(record, indent=2))
        print(f"{'':46}{'median':>8}{'quartiles':>16}{'floor':>7}")
        for what, values in record["cells"][title].items():
            low, high = values["lower_quartile"], values["upper_quartile"]
            print(f"{what:46}{values['median']:8.1f}{low:8.1f} to {high:.1f}{values['floor']:7}")
    options.out.with_suffix(".html").write_text(page(record))
    print(f"written to {options.out} and {options.out.with_suffix('.html')}")


if __name__ == "__main__":
    main()
