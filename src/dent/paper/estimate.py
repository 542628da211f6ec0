"""What tables will take, before they start: counted, and timed by one forward of each model."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch

from dent import models
from dent.attacks import Attack, make_from
from dent.config import DentConfig
from dent.evaluation.suites import suite
from dent.paper.planning import PaperPlan, PlannedRun
from dent.paper.scales import Chosen

_STEP: Final = 2.5
"""Forwards that one step of adaptation takes (paper Table 14: 25.3 for ten steps and an answer)."""
_BACKWARD: Final = 2
_PROBE: Final = 3  # answers to one batch, once a defense
_TIMED: Final = 32
_CLASSES: Final = {"cifar100": 100, "imagenet-288": 1000}
_PIXELS: Final = {"imagenet-288": 288}


@dataclass(frozen=True)
class PlanCost:
    """What is still to be done, at most: attacks stop early where members fall.

    Attributes:
        runs: Evaluations.
        forwards: Static forwards of one image that it all amounts to.
        seconds: By this machine's speed; None where a model is not here to be timed.
        missing: Models that are not here.
    """

    runs: int
    forwards: float
    seconds: float | None
    missing: tuple[str, ...]


def plan_cost(
    runs: Iterable[PlannedRun], timer: Callable[[Chosen], float | None] | None = None
) -> PlanCost:
    """Count what runs take.

    Args:
        runs: The evaluations, each once.
        timer: Seconds of a forward of one image of a model, or None where that cannot be told; by
            default nothing is timed.
    """
    count, forwards, seconds = 0, 0.0, 0.0
    missing: dict[str, None] = {}
    for run in runs:
        count += 1
        needed = forwards_of(run)
        forwards += needed
        one = None if timer is None else timer(run.model)
        if one is None:
            missing[run.model.stands_for or run.model.name] = None
        else:
            seconds += one * needed
    return PlanCost(count, forwards, None if missing else seconds, tuple(missing))


def forwards_of(run: PlannedRun) -> float:
    """Static forwards of one image that a run amounts to, at most.

    An answer with k steps is 1 + 2.5 k forwards, a gradient two more.
    """
    total = _of_defense(run, None)
    if run.defense is not None:
        total += _of_defense(run, run.defense)
    return total


def profile_forwards(plan: PaperPlan) -> float:
    """Forwards of one image of the profiled model that a table of computation amounts to."""
    if plan.profile is None:
        return 0.0
    steps = [DentConfig.from_dict(values).steps for values in plan.profiled.values()]
    once = sum(1 + _STEP * count for count in steps)
    rounds = 2 + plan.profile.rounds  # one with the trial, one to count operations
    return plan.profile.batch_size * rounds * once


def timer(device: torch.device) -> Callable[[Chosen], float | None]:
    """Time each model once, if it is here: the fastest of three forwards, per image."""
    known: dict[Chosen, float | None] = {}

    def timed(chosen: Chosen) -> float | None:
        if chosen not in known:
            known[chosen] = _time(chosen, device) if _is_here(chosen) else None
        return known[chosen]

    return timed


def undone(
    plans: Iterable[PaperPlan], done: Callable[[PlannedRun], bool]
) -> tuple[PlannedRun, ...]:
    """The evaluations of several tables, each once, less those that are done."""
    runs = dict.fromkeys(run for plan in plans for run in plan.runs())
    return tuple(run for run in runs if not done(run))


def _is_here(chosen: Chosen) -> bool:
    if chosen.weights is not None:
        return chosen.weights.is_file()
    return models.info(chosen.name).present


def _time(chosen: Chosen, device: torch.device) -> float:
    classes, pixels = _CLASSES.get(chosen.dataset, 10), _PIXELS.get(chosen.dataset, 32)
    model = models.load(chosen.name, weights=chosen.weights, num_classes=classes, device=device)
    x = torch.full((_TIMED, 3, pixels, pixels), 0.5, device=device)
    seconds = []
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            model(x).sum().item()
            seconds.append(time.perf_counter() - start)
    return min(seconds) / len(x)


def _of_defense(run: PlannedRun, defense: DentConfig | None) -> float:
    attacks = suite("dynamic", run.suite) if run.suite else tuple(map(make_from, run.attacks))
    answer = 1 + _STEP * (0 if defense is None else defense.steps)
    dynamic = defense is not None
    per_batch = max(1, round((run.mix or 1.0) * run.batch_size))
    batches = math.ceil(run.samples / per_batch)
    transfers = len(attacks) if dynamic else 0
    assembled = 1 if dynamic and 2 * len(attacks) > 1 else 0
    served = batches * (1 + len(attacks) + transfers + assembled) + _PROBE
    passes = sum(_of_attack(run, attack, answer, batches) for attack in attacks)
    return run.batch_size * (served * answer + passes)


def _of_attack(run: PlannedRun, attack: Attack, answer: float, batches: int) -> float:
    """Forwards of a batch that an attack takes over all batches."""
    classes = _CLASSES.get(run.model.dataset, 10)
    sized = attack.sized(run.batch_size)
    published = getattr(sized, "protocol", "") == "published"
    size = run.samples if published else run.batch_size
    passes, cheap = sized.passes(classes, run.norm, size), sized.unadapted(classes, run.norm)
    adapting = (passes.forwards - cheap.forwards) * answer
    gradients = _BACKWARD * passes.backwards
    return (adapting + cheap.forwards + gradients) * (1 if published else batches)
