"""Whether a defense could do less work: stopping converged batches, and warm starts in attacks.

These measurements come before any such option. *Stopping* measures the progress of dent+ by step,
on natural and on adversarial images. It then applies a rule that stops a batch when its mean
entropy falls by less than a given share of its value, and reports the steps that remain and the
accuracy. *Warm starts* runs APGD through a dent+ with fewer steps whose adaptation continues that
of the last query. Its images are submitted to dent+ itself, which starts from the trained
parameters as usual.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from baseline import PlainDentPlus
from torch import Tensor, nn

from dent import DENT_PLUS, Dent, ThreatModel, data, models
from dent.adaptation.objectives import entropy
from dent.attacks import make

THREAT: Final = ThreatModel("linf", "8/255")
TOLERANCES: Final = (0.02, 0.05, 0.1, 0.2)
Batch = tuple[Tensor, Tensor]


class Warm(PlainDentPlus):
    """dent+ that continues its last adaptation. A defense may not; an attack's surrogate may."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        super().__init__(model, steps)
        self.begun = False

    def start(self, samples: int) -> list[nn.Parameter]:
        """Start from the trained parameters in the first call only."""
        if not self.begun:
            self.begun = True
            return super().start(samples)
        return [each for layer in self.layers for each in (layer.weight, layer.bias)]


def attacked(target: nn.Module, batch: Batch, iterations: int) -> Tensor:
    """Return the adversarial images of APGD on the cross-entropy for a batch."""
    x, y = batch
    return make("apgd-ce", iterations=iterations)(target, x, y, THREAT, seed=0).adversarial


def courses(defense: Dent, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return entropy, correctness and size of the last update, (steps + 1, N) each.

    Row k is for an adaptation with k steps.
    """
    known: dict[str, list[Tensor]] = {"entropy": [], "right": [], "update": []}
    before: Mapping[str, Tensor] | None = None
    for steps in range(defense.steps + 1):
        shorter = defense.with_steps(steps)
        found = shorter.adapt(x)
        logits = shorter.predict(x, found)
        known["entropy"].append(entropy(logits))
        known["right"].append(logits.argmax(1) == y)
        moved = torch.zeros(len(x))
        if before is not None:
            changes = [found.parameters[name] - before[name] for name in before]
            moved = torch.cat([each.flatten(1) for each in changes], 1).norm(dim=1)
        known["update"].append(moved)
        before = {name: value.expand(len(x), -1) for name, value in found.parameters.items()}
    return {name: torch.stack(values) for name, values in known.items()}


def stopping(name: str, defense: Dent, batches: Sequence[Batch]) -> dict[str, Any]:
    """Measure the progress by step, and the steps and accuracy under each stopping rule."""
    each = [courses(defense, x, y) for x, y in batches]
    whole = {key: torch.cat([one[key] for one in each], 1) for key in each[0]}
    figures: dict[str, Any] = {
        "entropy": whole["entropy"].mean(1).tolist(),
        "confident": (whole["entropy"] < 0.05).float().mean(1).tolist(),
        "update": (whole["update"][1:] / whole["update"][1]).median(1).values.tolist(),
        "right": whole["right"].float().mean(1).tolist(),
        "rules": {},
    }
    for tolerance in TOLERANCES:
        steps, right = [], []
        for one in each:
            means = one["entropy"].mean(1)
            falls = (means[:-1] - means[1:]) / means[:-1]
            small = [at + 1 for at, fall in enumerate(falls.tolist()) if fall < tolerance]
            steps.append(small[0] if small else defense.steps)
            right.append(one["right"][steps[-1]].float().mean().item())
        figures["rules"][str(tolerance)] = {
            "steps": sum(steps) / len(steps),
            "right": sum(right) / len(right),
        }
    print(f"\n{name}: after 0 to {defense.steps} steps")
    for key in ("entropy", "confident", "update", "right"):
        print(f"  {key:10}" + "".join(f"{value:8.3f}" for value in figures[key]))
    for tolerance_, rule in figures["rules"].items():
        print(f"  stop below {tolerance_}: {rule['steps']:.1f} steps, right {rule['right']:.3f}")
    return figures


def warm_starts(
    model: nn.Module, defense: Dent, batches: Sequence[Batch], iterations: int
) -> list[dict[str, Any]]:
    """Attack through cheaper versions of dent+; return dent+'s accuracy and the time for each."""
    makers: dict[str, Any] = {
        "all 6 steps (the paper's attack)": lambda: defense,
        "6 steps, plain": lambda: PlainDentPlus(model, 6),
        "2 steps, started anew": lambda: PlainDentPlus(model, 2),
        "1 step, started anew": lambda: PlainDentPlus(model, 1),
        "2 steps, warm": lambda: Warm(model, 2),
        "1 step, warm": lambda: Warm(model, 1),
        "static": lambda: model,
    }
    rows = []
    print(f"\nAPGD-CE of {iterations} iterations through; served by dent+")
    for name, maker in makers.items():
        right, seconds = [], 0.0
        for x, y in batches:
            start = time.process_time()
            found = attacked(maker().eval(), (x, y), iterations)
            seconds += time.process_time() - start
            with torch.no_grad():
                right.append((defense(found).argmax(1) == y).float().mean().item())
        rows.append({"through": name, "right": sum(right) / len(right), "seconds": seconds})
        share = seconds / rows[1]["seconds"] if len(rows) > 1 else float("nan")
        rows[-1]["time"] = share
        print(
            f"  {name:36}{rows[-1]['right']:8.3f}{share:8.2f} of the plain one's time", flush=True
        )
    rows[0]["time"] = rows[0]["seconds"] / rows[1]["seconds"]
    return rows


def main() -> None:
    """Measure, print, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/less.json"))
    options = parser.parse_args()
    model = models.load("resnet-14-2-linf")
    defense = Dent(model, DENT_PLUS)
    x, y = data.load("cifar10-sample").batch(range(options.n))
    pairs = zip(x.split(options.batch_size), y.split(options.batch_size), strict=True)
    natural: list[Batch] = list(pairs)
    hostile = [(attacked(defense, batch, options.iterations), batch[1]) for batch in natural]
    figures = {
        "n": options.n,
        "natural": stopping("natural", defense, natural),
        "attacked": stopping("attacked", defense, hostile),
        "warm": warm_starts(model, defense, natural, options.iterations),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
