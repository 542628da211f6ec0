"""What attacking a defense takes: `python benchmarks/attack.py`.

Two questions, each answered by ratios from rounds in which all contestants take turns.

How much faster is an AutoAttack run than by the plain eager path (the memory format the model comes
in, whole batches)? Both find adversarial images; how many of them is printed beside the time, since
rounding differs.

How much more than a query by the stop-gradient does one by the exact, checkpointed gradient through
all steps take, in time and in memory?
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rounds import quartiles
from torch import Tensor, nn

from dent import DENT, DENT_PLUS, Dent, Performance, ThreatModel, data, models
from dent.attacks import Attack, make

THREAT = ThreatModel("linf", "8/255")
PLAIN = Performance(memory_format="preserve")
CONFIGS = {
    "dent+": DENT_PLUS,
    "dent+ by entropy alone": replace(DENT_PLUS, objective="entropy", reduction="sum"),
    "dent, 10 steps": replace(DENT, steps=10),  # as in the paper's Table 14
}


def interleaved(runs: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each, one per round, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(of: list[float], to: list[float]) -> list[float]:
    """Return quartiles of the ratio, round by round."""
    return quartiles([a / b for a, b in zip(of, to, strict=True)])


def autoattack(model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> list[object]:
    """AutoAttack on the static model and on defenses, by both paths."""
    budget = {"iterations": options.iterations, "targets": 1, "square_iterations": 20}
    whole, standing = make("standard", **budget), make("standard", **budget, ask="standing")
    rows: list[object] = []
    pairs: dict[str, tuple[nn.Module, nn.Module]] = {"static": (model, model)}
    for name, config in CONFIGS.items():
        pairs[name] = Dent(model, config, PLAIN), Dent(model, config)
    for name, (plain, fast) in pairs.items():
        fell: dict[str, int] = {}

        def attack(path: str, defense: nn.Module, by: Attack, fell: dict[str, int] = fell) -> None:
            fell[path] = int(by(defense, x, y, THREAT, seed=0).claimed.sum())

        runs = {
            "plain": partial(attack, "plain", plain, whole),
            "fast": partial(attack, "fast", fast, standing),
        }
        times = interleaved(runs, options.rounds)
        low, median, high = ratios(times["plain"], times["fast"])
        rows.append({"what": name, "faster": median, "quartiles": [low, high], "fell": fell})
        print(
            f"AutoAttack, {name:24}{median:6.2f} times faster ({low:.2f} to {high:.2f}); fell "
            f"{fell['plain']} and {fell['fast']} of {len(x)}",
            flush=True,
        )
    return rows


def query(defense: Dent, x: Tensor, y: Tensor, *, exact: bool) -> None:
    """Take the gradient of one query."""
    x = x.clone().requires_grad_()
    how = {"differentiable": True, "checkpointed": True} if exact else {}
    logits = defense.predict(x, defense.adapt(x, **how))
    torch.autograd.grad(nn.functional.cross_entropy(logits, y), x)


def exact(model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> list[object]:
    """The exact gradient's cost in queries by the stop-gradient."""
    rows: list[object] = []
    for name in ("dent+", "dent, 10 steps"):
        defense = Dent(model, CONFIGS[name])
        times = interleaved(
            {
                "stop": partial(query, defense, x, y, exact=False),
                "exact": partial(query, defense, x, y, exact=True),
            },
            options.rounds,
        )
        low, median, high = ratios(times["exact"], times["stop"])
        peaks = {kind: peak_of(name, kind, options) for kind in ("stop", "exact")}
        memory = peaks["exact"] / peaks["stop"]
        rows.append({"what": name, "time": median, "quartiles": [low, high], "memory": memory})
        print(
            f"exact gradient, {name:16} {median:.2f} stop-gradient queries ({low:.2f} to "
            f"{high:.2f}), {memory:.1f} times the memory",
            flush=True,
        )
    return rows


def peak_of(name: str, kind: str, options: argparse.Namespace) -> float:
    """Peak of memory of one query, in a process of its own, in MB above the loaded model."""
    command = [sys.executable, __file__, "--model", options.model, "--n", str(options.n)]
    ran = subprocess.run(  # noqa: S603 - this very script
        [*command, "--peak", f"{kind}:{name}"], capture_output=True, text=True, check=True
    )
    return float(ran.stdout)


def print_peak(model: nn.Module, x: Tensor, y: Tensor, what: str) -> None:
    """Query once and print by how many MB the peak of this process rose."""
    kind, _, name = what.partition(":")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    query(Dent(model, CONFIGS[name]), x, y, exact=kind == "exact")
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    """Measure, print, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet-14-2-linf", help="a name of `dent models`")
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-attack.json"))
    options = parser.parse_args()
    model = models.load(options.model)
    x, y = data.load("cifar10-sample").batch(range(options.n))
    if options.peak is not None:
        print_peak(model, x, y, options.peak)
        return
    settings = {key: str(value) for key, value in vars(options).items() if key != "peak"}
    figures = {"autoattack": autoattack(model, x, y, options), "exact": exact(model, x, y, options)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"settings": settings, **figures}, indent=2))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
