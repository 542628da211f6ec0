"""Where the time of a prediction goes: the share of CPU time by kind of operation."""

import argparse
import json
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from contestants import SETTINGS
from torch.profiler import ProfilerActivity, profile

from dent import DENT, DENT_PLUS, CompileWarning, Dent, models

CONFIGS: Final = {"dent+, 6 steps": DENT_PLUS, "dent, 10 steps": replace(DENT, steps=10)}
KINDS: Final = {
    "convolutions": ("convolution", "conv2d", "mkldnn"),
    "normalization": ("batch_norm", "norm"),
    "matrix products": ("mm", "matmul", "linear"),
    "compiled loops (normalization, activation, sums)": (
        "cpp_fused",
        "CompiledFunction",
        "CompiledFxGraph",
        "Torch-Compiled Region",
        "inductor",
    ),
    "elementwise": (
        "mul",
        "add",
        "sub",
        "div",
        "threshold",
        "clamp",
        "relu",
        "where",
        "sum",
        "mean",
    ),
    "conversion of type or layout": ("copy_", "_to_copy", "contiguous", "clone"),
}


def kind_of(operation: str) -> str:
    """Return the kind of an operation, by its name."""
    for kind, words in KINDS.items():
        if any(word in operation for word in words):
            return kind
    return "everything else"


def shares(config: Any, setting: str, batch_size: int) -> dict[str, float]:
    """Return the share of CPU time by kind of operation, the largest first."""
    defense = Dent(models.load("resnet-14-2-linf"), config, SETTINGS[setting])
    x = torch.rand(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        defense(x)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            defense(x)
    found: Counter[str] = Counter()
    for event in profiled.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total
    return {kind: time / found.total() for kind, time in found.most_common()}


def main() -> None:
    """Profile, print, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/where.json"))
    options = parser.parse_args()
    warnings.simplefilter("error", CompileWarning)  # no eager figure under a compiled name
    figures: dict[str, dict[str, float]] = {}
    for what, config in CONFIGS.items():
        for setting in ("default", "compiled", "compiled bfloat16"):
            figures[f"{what}, {setting}"] = shares(config, setting, options.batch_size)
    for name, found in figures.items():
        print(f"{name}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in found.items()))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
