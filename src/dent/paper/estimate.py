"""Estimate the cost of tables before they run: count forwards, and time one per model."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import torch

from dent import models
from dent.attacks import Attack, make_from
from dent.config import DentConfig
from dent.evaluation.suites import same_on_static, suite
from dent.paper.planning import PaperPlan, PlannedRun
from dent.paper.scales import Chosen

_STEP: Final = 2.5
"""Forwards that one step costs (paper Table 14: 25.3 for ten steps and the prediction)."""
_BACKWARD: Final = 2
_PROBE: Final = 3  # predictions for one batch, once per defense
_TIMED: Final = 32
_CLASSES: Final = {"cifar100": 100, "imagenet-288": 1000}
_PIXELS: Final = {"imagenet-288": 288}


@dataclass(frozen=True)
class PlanCost:
    """An upper bound on the work of runs.

    It is an upper bound because attacks stop early on a batch whose members are all wrong.

    Attributes:
        runs: Number of evaluations.
        forwards: The work in static forwards of one image.
        seconds: The time on this machine; None if a model was not timed.
        missing: The models that were not timed, for example because they are not on this machine.
    """

    runs: int
    forwards: float
    seconds: float | None
    missing: tuple[Chosen, ...]


@dataclass(frozen=True)
class UnitCost:
    """An upper bound on the work of one unit of a run. A run that is killed loses its last unit.

    Attributes:
        attack: The attack.
        defense: The attacked defense.
        model: Its model.
        forwards: The work in static forwards of one image.
        seconds: The time on this machine; None if the model was not timed.
    """

    attack: str
    defense: str
    model: Chosen
    forwards: float
    seconds: float | None


def largest_unit(
    runs: Iterable[PlannedRun], timer: Callable[[Chosen], float | None] | None = None
) -> UnitCost | None:
    """Return the largest unit of several runs: by time, or by forwards if a model is not timed.

    AutoAttack as released is one unit over all images. Any other attack is a unit for each batch.
    """
    found = [unit for run in runs for unit in _units(run, timer)]
    timed = all(unit.seconds is not None for unit in found)
    return max(
        found, key=lambda unit: (unit.seconds or 0.0) if timed else unit.forwards, default=None
    )


def plan_cost(
    runs: Iterable[PlannedRun], timer: Callable[[Chosen], float | None] | None = None
) -> PlanCost:
    """Add up the cost of runs.

    Args:
        runs: The evaluations, without repetition.
        timer: Returns the seconds that a model takes for a forward of one image, or None if they
            cannot be measured. By default nothing is timed.
    """
    count, forwards, seconds = 0, 0.0, 0.0
    missing: dict[Chosen, None] = {}
    for run in runs:
        count += 1
        run_forwards = forwards_of(run)
        forwards += run_forwards
        seconds_per_forward = None if timer is None else timer(run.model)
        if seconds_per_forward is None:
            missing[run.model] = None
        else:
            seconds += seconds_per_forward * run_forwards
    return PlanCost(count, forwards, None if missing else seconds, tuple(missing))


def forwards_of(run: PlannedRun) -> float:
    """Return an upper bound on the cost of a run, in static forwards of one image.

    A prediction with k steps takes 1 + 2.5 k forwards, and a gradient takes two more.
    """
    total = _of_defense(run, None)
    if run.defense is not None:
        total += _of_defense(run, run.defense)
    return total


def profile_forwards(plan: PaperPlan) -> float:
    """Return the cost of a table about computation, in forwards of one image by its model."""
    if plan.profile is None:
        return 0.0
    steps = [DentConfig.from_dict(values).steps for values in plan.profiled.values()]
    forwards = sum(1 + _STEP * count for count in steps)
    rounds = 2 + plan.profile.rounds  # one warm-up, one to count operations
    return plan.profile.batch_size * rounds * forwards


def timer(device: torch.device) -> Callable[[Chosen], float | None]:
    """Return a function that times a model: seconds per image in the fastest of three forwards.

    It times each model once. It returns None for a model that is not on this machine.
    """
    timings: dict[Chosen, float | None] = {}

    def timed(chosen: Chosen) -> float | None:
        if chosen not in timings:
            timings[chosen] = _time(chosen, device) if _is_here(chosen) else None
        return timings[chosen]

    return timed


def undone(
    plans: Iterable[PaperPlan], done: Callable[[PlannedRun], bool]
) -> tuple[PlannedRun, ...]:
    """Return the evaluations of several tables that are not done yet, without repetition."""
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


def _units(run: PlannedRun, timer: Callable[[Chosen], float | None] | None) -> Iterator[UnitCost]:
    """Yield the largest unit of each attack on the defense of a run, or on the static model."""
    seconds = None if timer is None else timer(run.model)
    batches = _batches(run)
    for attack in _attacks(run):
        whole = _is_published(attack, run)
        passes = _of_attack(run, attack, _answer(run.defense), batches) / (1 if whole else batches)
        forwards = run.batch_size * passes
        unit_seconds = None if seconds is None else seconds * forwards
        yield UnitCost(attack.name, run.defense_name, run.model, forwards, unit_seconds)


def _attacks(run: PlannedRun) -> tuple[Attack, ...]:
    return suite("dynamic", run.suite) if run.suite else tuple(map(make_from, run.attacks))


def _answer(defense: DentConfig | None) -> float:
    """Return the cost of one prediction in static forwards."""
    return 1 + _STEP * (0 if defense is None else defense.steps)


def _batches(run: PlannedRun) -> int:
    return math.ceil(run.samples / run.attacked_per_batch)


def _is_published(attack: Attack, run: PlannedRun) -> bool:
    return getattr(attack.sized(run.batch_size), "protocol", "") == "published"


def _of_defense(run: PlannedRun, defense: DentConfig | None) -> float:
    attacks = _attacks(run)
    if run.suite and defense is None:
        same = same_on_static(attacks, _CLASSES.get(run.model.dataset, 10), run.norm)
        attacks = tuple(attack for attack in attacks if attack.name not in same)
    answer = _answer(defense)
    dynamic = defense is not None
    batches = _batches(run)
    transfers = len(attacks) if dynamic else 0
    assembled = 1 if dynamic and 2 * len(attacks) > 1 else 0
    served = batches * (1 + len(attacks) + transfers + assembled) + _PROBE
    passes = sum(_of_attack(run, attack, answer, batches) for attack in attacks)
    return run.batch_size * (served * answer + passes)


def _of_attack(run: PlannedRun, attack: Attack, answer: float, batches: int) -> float:
    """Return the cost of an attack on all batches, in static forwards of one batch."""
    classes = _CLASSES.get(run.model.dataset, 10)
    sized = attack.sized(run.batch_size)
    published = _is_published(attack, run)
    size = run.samples if published else run.batch_size
    passes, cheap = sized.passes(classes, run.norm, size), sized.unadapted(classes, run.norm)
    adapting = (passes.forwards - cheap.forwards) * answer
    gradients = _BACKWARD * passes.backwards
    return (adapting + cheap.forwards + gradients) * (1 if published else batches)
