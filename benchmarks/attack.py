"""The cost of attacking a defense.

It answers two questions by ratios of times, from rounds in which all contestants take turns.

How much faster is AutoAttack than on the plain eager path (the model's original memory format, and
whole batches)? The number of fooled members is printed beside the time, because rounding differs
between the two.

How much more does a query by the exact, checkpointed gradient through all steps cost than one by
the stop-gradient, in time, and in memory by the number of steps?
"""

import argparse
import json
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from memory import peak_of, rise
from rounds import interleaved, ratios
from torch import Tensor, nn

from dent import DENT, DENT_PLUS, CompileWarning, Dent, Performance, ThreatModel, data, models
from dent.attacks import Attack, make

THREAT: Final = ThreatModel("linf", "8/255")
PLAIN: Final = Performance(memory_format="preserve")
CONFIGS: Final = {
    "dent+": DENT_PLUS,
    "dent+ by entropy alone": replace(DENT_PLUS, objective="entropy", reduction="sum"),
    "dent, 10 steps": replace(DENT, steps=10),  # as in the paper's Table 14
}
EXACT: Final = ("dent+", "dent, 10 steps")
STEPS: Final = (4, 9, 16, 25, 36)


def autoattack(model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> list[object]:
    """Time AutoAttack on the static model and on defenses, on both paths; return the rows."""
    budget = {
        "iterations": options.iterations,
        "targets": options.targets,
        "square_iterations": options.queries,
    }
    whole, standing = make("standard", **budget), make("standard", **budget, ask="standing")
    rows: list[object] = []
    pairs: dict[str, tuple[nn.Module, nn.Module]] = {"static": (model, model)}
    for name, config in CONFIGS.items():
        # Without the fooled members, every batch has a new shape, which would be compiled again.
        fast = Performance(compile=config.batch_dependent)
        pairs[name] = Dent(model, config, PLAIN), Dent(model, config, fast)
    for name, (slow, quick) in pairs.items():
        fell: dict[str, int] = {}

        def attack(path: str, defense: nn.Module, by: Attack, fell: dict[str, int] = fell) -> None:
            fell[path] = int(by(defense, x, y, THREAT, seed=0).fooled.sum())

        runs = {
            "plain": partial(attack, "plain", slow, whole),
            "fast": partial(attack, "fast", quick, standing),
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
    """Compute the gradient of one query."""
    x = x.clone().requires_grad_()
    how: dict[str, Any] = {"differentiable": True, "checkpointed": True} if exact else {}
    logits = defense.predict(x, defense.adapt(x, **how))
    torch.autograd.grad(nn.functional.cross_entropy(logits, y), x)


def exact(model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> list[object]:
    """Measure the exact gradient's cost in queries by the stop-gradient; return the rows."""
    rows: list[object] = []
    for name in EXACT:
        defense = Dent(model, CONFIGS[name])
        runs = {
            "stop": partial(query, defense, x, y, exact=False),
            "exact": partial(query, defense, x, y, exact=True),
        }
        times = interleaved(runs, options.rounds)
        low, median, high = ratios(times["exact"], times["stop"])
        rows.append({"what": name, "time": median, "quartiles": [low, high]})
        print(
            f"exact gradient, {name:16} {median:.2f} stop-gradient queries "
            f"({low:.2f} to {high:.2f})",
            flush=True,
        )
    return rows


def memory(options: argparse.Namespace) -> list[object]:
    """Measure both kinds of query of dent by number of steps: peak MB above the loaded model."""
    rows: list[object] = []
    for steps in STEPS:
        stop, full = (
            peak_of(__file__, "--n", str(options.n), "--peak", f"{kind}:{steps}")
            for kind in ("stop", "exact")
        )
        rows.append({"steps": steps, "stop": stop, "exact": full})
        print(
            f"memory, {steps:2} steps: stop-gradient {stop:.0f} MB, exact {full:.0f} MB", flush=True
        )
    return rows


def main() -> None:
    """Measure, print, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet-14-2-linf", help="a name of `dent models`")
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--targets", type=int, default=1)
    parser.add_argument("--queries", type=int, default=20, help="of Square")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/attack.json"))
    options = parser.parse_args()
    warnings.simplefilter("error", CompileWarning)  # no eager figure under a compiled name
    model = models.load(options.model)
    x, y = data.load("cifar10-sample").batch(range(options.n))
    if options.peak is not None:
        kind, _, steps = options.peak.partition(":")
        defense = Dent(model, replace(DENT, steps=int(steps)))
        print(rise(partial(query, defense, x, y, exact=kind == "exact")))
        return
    settings = {key: str(value) for key, value in vars(options).items() if key != "peak"}
    figures = {
        "autoattack": autoattack(model, x, y, options),
        "exact": exact(model, x, y, options),
        "memory": memory(options),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"settings": settings, **figures}, indent=1))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
