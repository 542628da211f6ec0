"""What dent+ costs if it adapts only the last layers: `python benchmarks/last_layers.py`.

The static model and all defenses take turns in every round. The figures are the median and
quartiles over rounds of a defense's CPU time divided by that of the static forward in the same
round. So run it on one thread (OMP_NUM_THREADS=1).
"""

import argparse
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from rounds import interleaved, ratios

from dent import DENT_PLUS, Dent, models

LAYERS: Final = (None, 5, 3)
"""Values of `last_layers`; None adapts all layers."""
_NAMES: Final = ("lower_quartile", "median", "upper_quartile")


def main() -> None:
    """Measure, print, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet-14-2-linf", help="a name of `dent models`")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/last_layers.json"))
    options = parser.parse_args()
    model = models.load(options.model)
    x = torch.rand(options.batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    runs: dict[str, Any] = {"static": partial(model, x)}
    for count in LAYERS:
        defense = Dent(model, replace(DENT_PLUS, last_layers=count))
        runs["all layers" if count is None else f"last_layers={count}"] = partial(defense, x)
    with torch.no_grad():
        times = interleaved(runs, options.rounds, time.process_time)
    static = times.pop("static")
    figures = {
        name: dict(zip(_NAMES, ratios(each, static), strict=True)) for name, each in times.items()
    }
    settings = {name: str(value) for name, value in vars(options).items()}
    threads = str(torch.get_num_threads())
    record = {"settings": settings | {"threads": threads}, "figures": figures}
    for name, each in figures.items():
        print(f"{name:16}" + "".join(f"{key}: {value:.2f}  " for key, value in each.items()))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
