"""Whether a defense that adapts to views is more robust than the mean of as many views.

    python benchmarks/views.py run --half choose --images 128     measure the missing batches
    python benchmarks/views.py run --half claim --hard ...        six attacks instead of one
    python benchmarks/views.py page                  write the tables of docs/evaluation/views.md

It uses CIFAR-10 and the bundled l-inf net. The test images are drawn in a fixed order. One half
is for choosing among defenses, and the other for claims about the chosen ones.

Every defense faces the same two attacks: APGD by the margin on the static model, and the same
attack through the whole defense by its exact gradient, which starts from the former. If a defense
predicts each image independently, only images that are still correct are attacked further. In the
end, each defense gets the images that were made for all others (`pooled`). Every line of the
journal holds one batch.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from journal import append, records
from pages import write_between
from torch import Tensor, nn

from dent import DENT_PLUS, Dent, DentConfig, ThreatModel, ViewsConfig, data, models
from dent.attacks import Attack, make
from dent.defenses import ET3, MeanSparse
from dent.evaluation.results.intervals import tango, wilson

MODEL: Final = "resnet-14-2-linf"
THREAT: Final = ThreatModel("linf", "8/255")
ITERATIONS: Final = 20
BATCH: Final = 32
HALVES: Final = ("choose", "claim")
ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs/evaluation/views.md"
KEPT: Final = ROOT / "docs/evaluation/views"

HARD: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("adaptive-unrolled", {"losses": "margin", "iterations": ITERATIONS, "warm": True}),
    ("adaptive-transfer", {"losses": "margin", "targeted": "margin", "targets": 3}),
    ("adaptive-stop-gradient", {"losses": "margin", "iterations": ITERATIONS}),
    ("adaptive-bpda", {"losses": "margin", "iterations": ITERATIONS}),
    ("gmsa-min", {"rounds": 3, "iterations": 10}),
    ("adaptive-unrolled", {"losses": (), "iterations": ITERATIONS, "targets": 1}),
)
"""The attacks. The first one goes through the whole defense. `--hard` runs all of them, each on the
images that are still correct."""

ALONE: Final = replace(DENT_PLUS, objective="entropy", reduction="sum")
"""dent+ without information maximization, so that it adapts to each image independently."""
STEP: Final = DentConfig(
    steps=1, lr=0.1, optimizer="sgd", betas=(0.0, 0.0), granularity="sample", reduction="sum"
)
"""One plain gradient step, whose exact gradient is smooth: the first step of Adam is a sign."""
FOUR: Final = ViewsConfig(count=4)


def of(config: DentConfig) -> Callable[[nn.Module], Dent]:
    """Return a factory that makes a defense of any model, by its configuration."""
    return partial(Dent, config=config)


def views(count: int, **fields: Any) -> Callable[[nn.Module], Dent]:
    """Return a factory for the mean of `count` views, without adaptation."""
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
"""The factory of each defense, and the cost of a prediction in forwards; a step costs two."""


def halves() -> dict[str, list[int]]:
    """Return the positions of the test images of each half, in the order of their use."""
    order = torch.randperm(10_000, generator=torch.Generator().manual_seed(16)).tolist()
    return {"choose": order[:5000], "claim": order[5000:]}


def steps_of(defense: nn.Module) -> int:
    """Return the number of steps of a defense; without any, GMSA has only one model to attack."""
    return int(getattr(defense, "steps", 0))


def correct(defense: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return which images a defense predicts correctly, bool (N,)."""
    with torch.no_grad():
        right: Tensor = defense(x).argmax(1) == y
    return right


def measured(
    model: nn.Module,
    names: Sequence[str],
    attacks: Sequence[Attack],
    x: Tensor,
    y: Tensor,
    seed: int,
) -> dict[str, Any]:
    """Return which images are correct, by defense: clean, under its own attacks, and under all."""
    made: dict[str, list[Tensor]] = {}
    found: dict[str, Any] = {}
    for name in names:
        start = time.perf_counter()
        defense = CANDIDATES[name][0](model)
        clean = correct(defense, x, y)
        stands = clean
        for adversarial in made.get(names[0], []):  # the images made for the static model
            stands = stands & correct(defense, adversarial, y)
        own = []
        for attack in attacks:
            among = torch.ones_like(stands) if defense.batch_dependent else stands
            if not bool(among.any()) or (attack.name == "gmsa-min" and not steps_of(defense)):
                continue
            adversarial = x.clone()
            adversarial[among] = attack(defense, x[among], y[among], THREAT, seed=seed).adversarial
            stands = stands & correct(defense, adversarial, y)
            own.append(adversarial)
        made[name] = own
        found[name] = {
            "clean": clean.tolist(),
            "own": stands.tolist(),
            "seconds": round(time.perf_counter() - start, 1),
        }
    for name in names:
        defense, pooled = CANDIDATES[name][0](model), torch.tensor(found[name]["own"])
        for adversarial in (each for own in made.values() for each in own):
            pooled = pooled & correct(defense, adversarial, y)
        found[name]["pooled"] = pooled.tolist()
    return found


def run(journal: Path, half: str, images: int, names: Sequence[str], hard: bool) -> None:
    """Measure the batches that are not in the journal yet, and append one line for each."""
    model, dataset = models.load(MODEL).eval(), data.load("cifar10")
    attacks = [make(name, **settings) for name, settings in HARD[: None if hard else 1]]
    done = {(line["first"], tuple(line["found"])) for line in records(journal)}
    for first in range(0, images, BATCH):
        if (first, tuple(names)) in done:
            continue
        x, y = dataset.batch(halves()[half][first : min(first + BATCH, images)])
        found = measured(model, names, attacks, x, y, seed=first)
        append(journal, {"first": first, "found": found})
        kept = {name: sum(each["pooled"]) for name, each in found.items()}
        print(first + len(y), kept, flush=True)


def together(journal: Path, names: Sequence[str]) -> dict[str, dict[str, list[bool]]]:
    """Join the batches in which exactly these defenses were measured."""
    total: dict[str, dict[str, list[bool]]] = {
        name: {"clean": [], "own": [], "pooled": []} for name in names
    }
    for line in records(journal):
        if tuple(line["found"]) == tuple(names):
            for name, each in line["found"].items():
                for key, values in total[name].items():
                    values.extend(each[key])
    return total


def tables(journal: Path) -> Iterator[str]:
    """Yield a Markdown table for every set of defenses that was measured together."""
    for names in dict.fromkeys(tuple(line["found"]) for line in records(journal)):
        total = together(journal, names)
        size = len(total[names[0]]["pooled"])
        # Compare with the static model, and with the mean of the most views, which comes last.
        against = [names[0], *[name for name in names if name.startswith("tte")][-1:]]
        heads = [f"{size} images", "forwards", "clean", "under attack"]
        rows = [heads + [f"minus {other}" for other in against]]
        for name in names:
            clean, pooled = total[name]["clean"], total[name]["pooled"]
            low, high = wilson(sum(pooled), size)
            kept = f"{100 * sum(pooled) / size:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
            row = [name, str(CANDIDATES[name][1]), f"{100 * sum(clean) / size:.1f}%", kept]
            rows.append(
                row + [_minus(pooled, total[o]["pooled"]) if o != name else "" for o in against]
            )
        rule = ["---", *["---:"] * (len(rows[0]) - 1)]
        yield "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def _minus(mine: Sequence[bool], other: Sequence[bool]) -> str:
    gained = sum(a and not b for a, b in zip(mine, other, strict=True))
    lost = sum(b and not a for a, b in zip(mine, other, strict=True))
    low, high = tango(gained, lost, len(mine))
    points = 100 * (gained - lost) / len(mine)
    return f"{points:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}], {gained} to {lost}"


def page() -> None:
    """Write the tables of the saved journals into the page, between their markers."""
    for journal in sorted(KEPT.glob("*.jsonl")):
        write_between(PAGE, journal.stem, tables(journal))


def main() -> None:
    """Run the measurements, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("--half", choices=HALVES, default="choose")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--defense", action="append", choices=list(CANDIDATES))
    parser.add_argument("--out", type=Path, default=KEPT)
    parser.add_argument("--hard", action="store_true", help="every attack, not the first alone")
    given = parser.parse_args()
    journal = given.out / f"{given.half}{'-hard' if given.hard else ''}.jsonl"
    names = ["static", *(name for name in given.defense or CANDIDATES if name != "static")]
    if given.what == "run":
        torch.set_num_threads(1)
        run(journal, given.half, given.images, names, given.hard)
    else:
        page()


if __name__ == "__main__":
    main()
