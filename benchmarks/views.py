"""Whether anything that adapts to views keeps more than the mean of as many views.

    python benchmarks/views.py run --half choose --images 128     adds what is not measured yet
    python benchmarks/views.py show --half choose                 the table, in Markdown

On CIFAR-10 and the shipped l-inf net. The test images are drawn in a fixed order, of which one half
is for choosing among defenses and the other for what is claimed of the chosen ones.

Every defense faces the same: what APGD by the margin makes of the static model, and the same
attack through the whole defense by its exact gradient, which starts from the former. Where a
defense answers each image by itself, only images that still stand are attacked further. At last
each is served what was made for all others (`pooled`). Every line of the journal holds one batch.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from dent import DENT_PLUS, Dent, DentConfig, ThreatModel, ViewsConfig, data, models
from dent.attacks import make
from dent.defenses import ET3, MeanSparse
from dent.evaluation.results.intervals import tango, wilson

MODEL: Final = "resnet-14-2-linf"
THREAT: Final = ThreatModel("linf", "8/255")
ITERATIONS: Final = 20
BATCH: Final = 32
HALVES: Final = ("choose", "claim")
FOLDER: Final = Path("runs/views")

ALONE: Final = replace(DENT_PLUS, objective="entropy", reduction="sum")
"""dent+ without information maximization: each image by itself."""
STEP: Final = DentConfig(
    steps=1, lr=0.1, optimizer="sgd", betas=(0.0, 0.0), granularity="sample", reduction="sum"
)
"""One plain gradient step, which has a smooth exact gradient: Adam's first is a sign."""
FOUR: Final = ViewsConfig(count=4)


def of(config: DentConfig) -> Callable[[nn.Module], Dent]:
    """A defense of any model, by its configuration."""
    return partial(Dent, config=config)


def views(count: int, **fields: Any) -> Callable[[nn.Module], Dent]:
    """The mean of so many views, without adaptation."""
    return of(DentConfig(steps=0, views=ViewsConfig(count=count, **fields)))


CANDIDATES: Final[Mapping[str, tuple[Callable[[nn.Module], Any], int]]] = {
    "static": (of(DentConfig(steps=0)), 1),
    "tte, 4 views": (views(4), 4),
    "tte, 6 views": (views(6), 6),
    "tte, 13 views": (views(13), 13),
    "tte, 13 views, shift 1": (views(13, shift=1), 13),
    "tte, 13 views, shift 3": (views(13, shift=3), 13),
    "tte, 13 views, probabilities": (views(13, predict="probabilities"), 13),
    "dent+": (of(DENT_PLUS), 13),
    "dent+, entropy": (of(ALONE), 13),
    "entropy, 1 step, 4 views": (of(replace(STEP, views=FOUR)), 12),
    "agreement, 1 step, 4 views": (
        of(replace(STEP, objective="agreement", lr=1.0, views=FOUR)),
        12,
    ),
    "et3": (ET3, 11),
    "mean-sparse": (MeanSparse, 1),
}
"""Every defense, and what one prediction costs in forwards; a step counts as two."""


def halves() -> dict[str, list[int]]:
    """The places of the test images of each half, in the order in which they are taken."""
    order = torch.randperm(10_000, generator=torch.Generator().manual_seed(16)).tolist()
    return {"choose": order[:5000], "claim": order[5000:]}


def correct(defense: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images a defense answers correctly, (N,) bool."""
    with torch.no_grad():
        right: Tensor = defense(x).argmax(1) == y
    return right


def attacked(defense: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
    """What APGD by the margin makes of a batch, through the whole defense and warm."""
    attack = make("adaptive-unrolled", losses="margin", iterations=ITERATIONS, warm=True)
    return attack(defense, x, y, THREAT, seed=seed).adversarial


def measured(
    model: nn.Module, names: Sequence[str], x: Tensor, y: Tensor, seed: int
) -> dict[str, Any]:
    """By defense: correct on clean images, under its own attacks, and under everyone's."""
    made: dict[str, Tensor] = {}
    found: dict[str, Any] = {}
    for name in names:
        start = time.perf_counter()
        defense = CANDIDATES[name][0](model)
        clean = correct(defense, x, y)
        stands = clean
        if made:  # the static model's comes first
            stands = stands & correct(defense, made[names[0]], y)
        among = torch.ones_like(stands) if defense.batch_dependent else stands
        adversarial = x.clone()
        if bool(among.any()):
            adversarial[among] = attacked(defense, x[among], y[among], seed)
            stands = stands & correct(defense, adversarial, y)
        made[name] = adversarial
        found[name] = {
            "clean": clean.tolist(),
            "own": stands.tolist(),
            "seconds": round(time.perf_counter() - start, 1),
        }
    for name in names:
        defense, pooled = CANDIDATES[name][0](model), torch.tensor(found[name]["own"])
        for adversarial in made.values():
            pooled = pooled & correct(defense, adversarial, y)
        found[name]["pooled"] = pooled.tolist()
    return found


def run(folder: Path, half: str, images: int, names: Sequence[str]) -> None:
    """Measure the batches that are not in the journal yet, one line each."""
    model, dataset = models.load(MODEL).eval(), data.load("cifar10")
    journal = folder / f"{half}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    done = {(line["first"], tuple(line["found"])) for line in lines(journal)}
    for first in range(0, images, BATCH):
        if (first, tuple(names)) in done:
            continue
        x, y = dataset.batch(halves()[half][first : min(first + BATCH, images)])
        found = measured(model, names, x, y, seed=first)
        with journal.open("a") as file:
            file.write(json.dumps({"first": first, "found": found}) + "\n")
        kept = {name: sum(each["pooled"]) for name, each in found.items()}
        print(first + len(y), kept, flush=True)


def lines(journal: Path) -> Iterator[dict[str, Any]]:
    """Every whole line of a journal; one that a kill cut short is left out."""
    for line in journal.read_text().splitlines() if journal.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def together(journal: Path, names: Sequence[str]) -> dict[str, dict[str, list[bool]]]:
    """Put the batches together in which exactly these defenses were measured."""
    total: dict[str, dict[str, list[bool]]] = {
        name: {"clean": [], "own": [], "pooled": []} for name in names
    }
    for line in lines(journal):
        if tuple(line["found"]) == tuple(names):
            for name, each in line["found"].items():
                for key, values in total[name].items():
                    values.extend(each[key])
    return total


def show(journal: Path) -> Iterator[str]:
    """Yield a table for every set of defenses that was measured together."""
    for names in dict.fromkeys(tuple(line["found"]) for line in lines(journal)):
        total = together(journal, names)
        size = len(total[names[0]]["pooled"])
        baselines = [name for name in names if name.startswith(("static", "tte"))]
        yield f"{size} images"
        heads = ["defense", "forwards", "clean", "own attacks", "all attacks", "interval"]
        heads += [f"less {name}" for name in baselines]
        yield "| " + " | ".join(heads) + " |"
        yield "| --- " + "| ---: " * (len(heads) - 1) + "|"
        for name in names:
            clean, own, pooled = (total[name][key] for key in ("clean", "own", "pooled"))
            low, high = wilson(sum(pooled), size)
            cells = [name, str(CANDIDATES[name][1])]
            cells += [f"{100 * sum(each) / size:.1f}%" for each in (clean, own, pooled)]
            cells.append(f"{100 * low:.1f} to {100 * high:.1f}")
            cells += [_less(pooled, total[other]["pooled"]) for other in baselines]
            yield "| " + " | ".join(cells) + " |"
        yield ""


def _less(mine: Sequence[bool], other: Sequence[bool]) -> str:
    gained = sum(a and not b for a, b in zip(mine, other, strict=True))
    lost = sum(b and not a for a, b in zip(mine, other, strict=True))
    low, high = tango(gained, lost, len(mine))
    points = 100 * (gained - lost) / len(mine)
    return f"{points:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}), {gained} : {lost}"


def main() -> None:
    """Run or show."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("--half", choices=HALVES, default="choose")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--defense", action="append", choices=list(CANDIDATES))
    parser.add_argument("--out", type=Path, default=FOLDER)
    given = parser.parse_args()
    names = ["static", *(name for name in given.defense or CANDIDATES if name != "static")]
    if given.what == "run":
        torch.set_num_threads(1)
        run(given.out, given.half, given.images, names)
    else:
        print("\n".join(show(given.out / f"{given.half}.jsonl")))


if __name__ == "__main__":
    main()
