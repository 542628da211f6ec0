"""How strong the dynamic suite is, compared with published attacks by others on the same images.

Every attack but those of `suite` runs separately and from scratch. Its images are submitted once
more to a new defense, and the result is counted. The attacks are:

- each attack of the suite under a budget;
- `suite`: a whole run of it, in which attacks skip members that others broke, or start from them;
- options that no attack of the suite uses (`options`): losses at every step of the adaptation, and
  the exact gradient of fewer, larger steps. Both begin where `adaptive-unrolled-warm` begins;
- the fixed point attack and GMSA as Chen et al. (ICLR 2022) describe them, with plain sign steps;
- `pool`: transfers toward every target and the rounds of GMSA. They are assembled by the margin of
  each member under the defense, and then follow the exact gradient of a hinge;
- `library`: PGD and APGD of foolbox, adv-lib and torchattacks, of those that are installed. They
  follow the gradient of the last forward, as with any model.

    python benchmarks/strength.py run --n 128     the measurements; the same command continues them
    python benchmarks/strength.py run --from RUN --defense dent+     a run of the suite to its end
    python benchmarks/strength.py page            write the tables of docs/evaluation/strength.md

The journals are in docs/evaluation/strength/. *By image* is the per-image worst case over the
attacks of a row. *By whole batch* is the per-batch worst case, which is the fair count for a
defense whose members are predicted together.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from journal import append, records
from pages import write_between
from torch import Tensor

from dent import DENT, DENT_PLUS, Dent, ThreatModel, data, models
from dent.attacks import Attack, from_adv_lib, from_foolbox
from dent.attacks.losses import margin
from dent.evaluation import load_run
from dent.evaluation.results.intervals import wilson
from dent.evaluation.results.scoring import score
from dent.evaluation.suite_attacks import BUDGETS
from dent.evaluation.suites import suite_attacks

THREAT: Final = ThreatModel("linf", "8/255")
MODEL: Final = "resnet-14-2-linf"
DEFENSES: Final = {"dent+": DENT_PLUS, "dent-10": replace(DENT, steps=10)}
BATCH: Final = 32
ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs/evaluation/strength.md"
KEPT: Final = ROOT / "docs/evaluation/strength"
SUITE: Final = "suite"
"""The group of a whole run of the suite; see `take`."""
Strong = Callable[[Any, Tensor, Tensor], Tensor]
"""A function from a defense, images and labels to adversarial images."""


class Found(NamedTuple):
    """Candidate images (N, C, H, W) with their margins (N,) under the defense."""

    images: Tensor
    margins: Tensor


def served(defense: Any, images: Tensor, labels: Tensor) -> Found:
    """Return a batch with its margins under the defense; above 0 the prediction is wrong."""
    with torch.no_grad():
        return Found(images, margin(defense(images), labels))


def ranked(logits: Tensor, labels: Tensor, count: int) -> list[Tensor]:
    """Return up to `count` wrong classes for each member, the most likely first."""
    others = logits.scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True)
    return [others[:, rank] for rank in range(min(count, logits.shape[1] - 1))]


def signed(
    loss_of: Callable[[Tensor], Tensor], natural: Tensor, start: Tensor, iterations: int
) -> Tensor:
    """Take sign steps of eps / 4, halved twice; return each member's image of highest loss."""
    x = best = start
    highest = torch.full((len(x),), -torch.inf)
    for at in range(iterations + 1):
        leaf = x.detach().requires_grad_()
        loss = loss_of(leaf)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        better = (loss.detach() > highest)[:, None, None, None]
        best = torch.where(better, x, best)
        highest = torch.maximum(highest, loss.detach())
        size = THREAT.eps / (4 if at < iterations // 2 else 8 if at < 3 * iterations // 4 else 16)
        x = THREAT.project(x + size * gradient.sign(), natural)
    return best.detach()


def random_start(natural: Tensor) -> Tensor:
    """Return a uniformly random point in the eps-ball around each image."""
    noise = (2 * torch.rand(natural.shape) - 1) * THREAT.eps
    return THREAT.project(natural + noise, natural)


def keep_worst(defense_found: Sequence[Found]) -> Tensor:
    """Return the whole batch in which most members are predicted wrongly."""
    return max(defense_found, key=lambda found: int((found.margins > 0).sum())).images


def assemble(candidates: Sequence[Found]) -> Tensor:
    """Return each member's image with the highest margin, as one batch."""
    best = torch.stack([found.margins for found in candidates]).argmax(dim=0)
    stacked = torch.stack([found.images for found in candidates])
    return stacked[best, torch.arange(len(best))]


def model_space(
    defense: Any, x: Tensor, y: Tensor, how: str, *, rounds: int, iterations: int, targets: int
) -> list[Found]:
    """Return every round's batch of FPA (`last`), GMSA-AVG (`mean`) or GMSA-MIN (`least`)."""

    def combined(adaptations: list[Any], aimed: Tensor | None) -> Callable[[Tensor], Tensor]:
        def loss(images: Tensor) -> Tensor:
            used = adaptations[-1:] if how == "last" else adaptations
            losses = torch.stack([margin(defense.predict(images, a), y, aimed) for a in used])
            return losses.amin(dim=0) if how == "least" else losses.mean(dim=0)

        return loss

    natural = defense.adapt(x)
    with torch.no_grad():
        logits = defense.predict(x, natural)
    found = [Found(x, margin(logits, y))]
    aims: list[Tensor | None] = [None, *ranked(logits, y, targets)]
    for aimed in aims:
        adaptations = [natural]
        for _ in range(rounds):
            images = signed(combined(adaptations, aimed), x, random_start(x), iterations)
            adaptations.append(defense.adapt(images))
            with torch.no_grad():
                found.append(Found(images, margin(defense.predict(images, adaptations[-1]), y)))
    return found


def published(how: str, rounds: int = 3, iterations: int = 30, targets: int = 9) -> Strong:
    """Return an attack of Chen et al. It takes the worst of its rounds and the assembled batch."""

    def attack(defense: Any, x: Tensor, y: Tensor) -> Tensor:
        found = model_space(
            defense, x, y, how, rounds=rounds, iterations=iterations, targets=targets
        )
        return keep_worst([*found, served(defense, assemble(found), y)])

    return attack


def transfers(defense: Any, x: Tensor, y: Tensor, iterations: int, targets: int) -> list[Found]:
    """Attack the static model untargeted and toward each target; return the submitted batches."""
    base = defense.unwrap()
    with torch.no_grad():
        aims: list[Tensor | None] = [None, *ranked(base(x), y, targets)]
    batches = [
        signed(lambda images, t=aim: margin(base(images), y, t), x, random_start(x), iterations)  # type: ignore[misc]
        for aim in aims
    ]
    return [served(defense, images, y) for images in batches]


def pool(
    *, targets: int = 9, transfer: int = 40, rounds: int = 3, gmsa: int = 20, exact: int = 40
) -> Strong:
    """Return an attack of transfers, rounds of GMSA, then the exact gradient of a hinge."""

    def attack(defense: Any, x: Tensor, y: Tensor) -> Tensor:
        found = transfers(defense, x, y, transfer, targets)
        found += model_space(defense, x, y, "least", rounds=rounds, iterations=gmsa, targets=0)
        found.append(served(defense, assemble(found), y))
        if exact:
            start = assemble(found)

            def hinge(images: Tensor) -> Tensor:
                adaptation = defense.adapt(images, differentiable=True)
                margins = margin(defense.predict(images, adaptation), y)
                found.append(Found(images.detach(), margins.detach()))
                return margins.clamp(max=0.5)

            signed(hinge, x, start, exact)
            found.append(served(defense, assemble(found), y))
        return keep_worst(found)

    return attack


def options(budget: str) -> Iterator[tuple[str, Attack]]:
    """Yield the suite's warm unrolled attack with one option changed in each."""
    warm = next(
        listed.make(budget)  # type: ignore[arg-type]
        for listed in suite_attacks("dynamic", budget)  # type: ignore[arg-type]
        if listed.name == "adaptive-unrolled-warm"
    )
    yield "every-step", replace(warm, losses_at="all")  # type: ignore[call-arg]
    yield "larger-steps", replace(warm, rung="fewer-steps", larger=True)  # type: ignore[call-arg]


def libraries() -> Iterator[tuple[str, Strong]]:
    """Yield the attacks of other libraries that are installed."""
    foreign = {}
    if find_spec("foolbox"):
        foreign["library/foolbox-pgd"] = from_foolbox("LinfPGD", steps=40)
    if find_spec("adv_lib"):
        foreign["library/adv-lib-apgd"] = from_adv_lib("apgd", n_iter=40)
    for name, made in foreign.items():
        yield (
            name,
            lambda defense, x, y, made=made: made(defense, x, y, THREAT, seed=0).adversarial,  # type: ignore[misc]
        )
    if find_spec("torchattacks"):
        yield "library/torchattacks-apgd", torchattacks_apgd


def torchattacks_apgd(defense: Any, x: Tensor, y: Tensor) -> Tensor:
    """Run APGD of torchattacks, which always queries the whole batch."""
    images = import_module("torchattacks").APGD(defense.eval(), eps=THREAT.eps, steps=40)(x, y)
    return THREAT.project(images.detach(), x)


def contestants(budget: str) -> Iterator[tuple[str, Strong]]:
    """Yield all attacks with their names: the suite's, its options, then those by others."""
    ours = {
        f"{budget}/{listed.name}": listed.make(budget)  # type: ignore[arg-type]
        for listed in suite_attacks("dynamic", budget)  # type: ignore[arg-type]
    }
    ours |= {f"options/{name}": attack for name, attack in options(budget)}
    for name, made in ours.items():
        yield (
            name,
            lambda defense, x, y, made=made: made(defense, x, y, THREAT, seed=0).adversarial,  # type: ignore[misc]
        )
    yield from libraries()
    yield "published/fpa", published("last")
    yield "published/gmsa-avg", published("mean")
    yield "published/gmsa-min", published("least")
    yield "published/gmsa-min-10", published("least", rounds=10, iterations=20, targets=0)
    yield "pool/transfers", pool(exact=0, rounds=0)
    yield "pool/whole", pool()


def run(out: Path, n: int, names: Sequence[str], defenses: Sequence[str], budget: str) -> None:
    """Run the attacks that have no record yet, batch by batch."""
    model = models.load(MODEL)
    images = data.load("cifar10")
    known = dict(contestants(budget))
    for defense_name in defenses:
        journal = out / f"{defense_name}.jsonl"
        done = {(line["attack"], line["first"]) for line in records(journal)}
        for name in names or known:
            for first in range(0, n, BATCH):
                if (name, first) in done:
                    continue
                x, y = images.batch(range(first, min(first + BATCH, n)))
                torch.manual_seed(first)
                defense = Dent(model, DEFENSES[defense_name])
                began = time.process_time()
                adversarial = known[name](defense, x, y)
                seconds = round(time.process_time() - began, 1)
                assert not bool(THREAT.check(adversarial, x).any())
                margins = served(Dent(model, DEFENSES[defense_name]), adversarial, y).margins
                right = (margins <= 0).tolist()
                append(
                    journal, {"attack": name, "first": first, "seconds": seconds, "right": right}
                )
                print(defense_name, name, first, seconds, sum(right), flush=True)


def take(journal: Path, folder: Path, n: int) -> None:
    """Append what a whole run of the suite submitted to a defense, from its records.

    Only its first `n` images are taken.

    Raises:
        SystemExit: The run has another defense, or batches that are not those of this script.
    """
    recorded = load_run(folder)
    if journal.stem not in recorded.result.defenses:
        raise SystemExit(f"{folder} has no defense that is called {journal.stem}")
    for batch in recorded.plan.batches[: n // BATCH]:
        first = batch.index * BATCH
        if tuple(batch.ids) != tuple(range(first, first + BATCH)):
            raise SystemExit(f"batch {batch.index} of {folder} has other images than this script")
    done = {(line["attack"], line["first"]) for line in records(journal)}
    scores = score(recorded.run.spec, recorded.plan, recorded.records)[journal.stem]
    for name, pieces in scores.submissions.items():
        took = {unit.batch: round(unit.timing.total, 1) for unit in scores.records[name]}
        for index, piece in pieces.items():
            attack, first = f"{SUITE}/{name}", index * BATCH
            if first + BATCH <= n and (attack, first) not in done:
                right = [bool(each) for each in piece.attacked]
                line = {"attack": attack, "first": first, "seconds": took[index], "right": right}
                append(journal, line)


def table(journal: Path) -> Iterator[str]:
    """Yield the lines of a table: the correct images under each attack, and under each group.

    Of a whole run of the suite, only the worst case over all submissions has a line.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for line in records(journal):
        found.setdefault(line["attack"], {})[line["first"]] = line
    yield "| attack | images | seconds | left by image | left by whole batch |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for group in dict.fromkeys(name.partition("/")[0] for name in found):
        inside = [name for name in found if name.startswith(f"{group}/")]
        for name in inside if group != SUITE else ():
            yield _row(name, [found[name]])
        if len(inside) > 1:
            yield _row(f"**{group}, all**", [found[name] for name in inside])


def _row(title: str, runs: Sequence[dict[int, dict[str, Any]]]) -> str:
    shared = sorted(set.intersection(*(set(lines) for lines in runs)))
    batches = [[lines[first] for lines in runs] for first in shared]
    seconds = sum(each["seconds"] for found in batches for each in found)
    images = single = whole = 0
    for found in batches:
        rights: list[list[bool]] = [each["right"] for each in found]
        images += len(rights[0])
        single += [all(of_member) for of_member in zip(*rights, strict=True)].count(True)
        whole += min(of_attack.count(True) for of_attack in rights)
    low, high = wilson(whole, images)
    return (
        f"| {title} | {images} | {seconds:.0f} | {100 * single / images:.1f}% | "
        f"{100 * whole / images:.1f}% [{100 * low:.1f}, {100 * high:.1f}] |"
    )


def page() -> None:
    """Write the tables of the saved journals into the page, between their markers."""
    for journal in sorted(KEPT.glob("*.jsonl")):
        write_between(PAGE, journal.stem, ["\n".join(table(journal))])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("--out", type=Path, default=KEPT)
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--attack", action="append", default=[])
    parser.add_argument("--from", type=Path, dest="folder", help="records of the suite to take")
    parser.add_argument("--defense", action="append", choices=DEFENSES, default=[])
    asked = parser.parse_args()
    if asked.folder is not None and (asked.what != "run" or len(asked.defense) != 1):
        parser.error("--from is for run, with the one --defense whose records it takes")
    if asked.folder is not None:
        take(asked.out / f"{asked.defense[0]}.jsonl", asked.folder, asked.n)
    elif asked.what == "run":
        torch.set_num_threads(1)
        run(asked.out, asked.n, asked.attack, asked.defense or list(DEFENSES), asked.budget)
    else:
        page()


if __name__ == "__main__":
    main()
