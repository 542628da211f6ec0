"""AutoAttack exactly as it ships, over all images of an evaluation at once.

Only side effects on the caller are prevented: its warnings become notes, FAB takes its gradients
without writing into the model's `.grad`, and its changes to global state are undone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARNING, Handler, Logger, LogRecord
from typing import TYPE_CHECKING, Any

import torch
from pyautoattack import checks
from pyautoattack.autoattack import AutoAttack
from pyautoattack.square import SquareAttack

from dent.attacks.autoattack.parts import (
    FAB,
    NORMS,
    SETS,
    Part,
    PartName,
    SetName,
    build_apgd,
    build_fab,
    build_square,
    dlr_is_undefined,
)
from dent.attacks.base import Outcome
from dent.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from dent.attacks.querier import Querier
    from dent.threat import ThreatModel


def run_published(
    name: PartName | SetName,
    parts: tuple[Part, ...],
    target: Querier,
    threat: ThreatModel,
    seed: int,
    batch_size: int | None,
) -> Outcome:
    """Run `run_standard_evaluation` on the target's images.

    Raises:
        ConfigError: If there are too few classes for DLR, for which AutoAttack would fail.
    """
    size = batch_size or len(target.natural)
    model = _Model(target)
    model(target.natural[:size])  # to learn the number of classes
    classes = target.classes or 0
    undefined = [part.name for part in parts if dlr_is_undefined(part, classes)]
    if undefined:
        raise ConfigError(
            f"{', '.join(undefined)} needs more than {classes} classes as published (DLR is "
            "undefined); use protocol='frozen', or fab-t, apgd-ce or square"
        )
    with _quietly() as (logger, warnings):
        attack = configure(name, parts, model, threat, seed, logger)
        attack.apgd_targeted.n_target_classes = min(
            attack.apgd_targeted.n_target_classes, classes - 1
        )
        attack.fab.n_target_classes = min(attack.fab.n_target_classes, classes - 1)
        adversarial, answers = attack.run_standard_evaluation(
            target.natural.clone(), target.labels.clone(), batch_size=size
        )
    fooled = answers != target.labels
    if target.non_finite:
        # AutoAttack saw these rows as equal logits, which look correct for the first class.
        # A row may be a prediction in a batch of another size, so keep the batches of the attack.
        predicted = torch.cat([target.submit(part)[1] for part in adversarial.split(size)])
        fooled = fooled | ~predicted
    return Outcome(adversarial, fooled, {}, tuple(dict.fromkeys(warnings)))


class _Model:
    """The model given to AutoAttack. It takes any rows, in any number."""

    def __init__(self, target: Querier) -> None:
        self.target = target

    def __call__(self, images: Tensor) -> Tensor:
        logits, predicted = self.target.submit(images)
        return torch.where(predicted.unsqueeze(1), logits, 0.0)


def configure(
    name: PartName | SetName,
    parts: tuple[Part, ...],
    model: _Model,
    threat: ThreatModel,
    seed: int,
    logger: Logger,
) -> Any:
    """Return AutoAttack's own object, with its attacks rebuilt for the budgets of the parts."""
    device = model.target.natural.device
    shipped: Any = AutoAttack
    attack = shipped(
        model,
        norm=NORMS[threat.norm],
        eps=threat.eps,
        seed=seed,
        device=device,
        version=name if name in SETS else "custom",
        attacks=None if name in SETS else [name],
    )
    attack.logger = logger
    # In a set with both FAB parts, one object runs them. The untargeted part sets its restarts.
    for part in sorted(parts, key=lambda part: -part.targets):
        if part.name == "square":
            attack.square = build_square(SquareAttack, model, part, threat, seed, device)
        elif part.name.startswith("fab"):
            targets = part.targets or attack.fab.n_target_classes
            attack.fab = build_fab(FAB, model, part, threat, seed, device)
            attack.fab.n_target_classes = targets
        elif part.targets:
            attack.apgd_targeted = build_apgd(model, part, threat, seed, device, logger)
        else:
            attack.apgd = build_apgd(model, part, threat, seed, device, logger)
    return attack


class _Collector(Handler):
    def __init__(self) -> None:
        super().__init__(WARNING)
        self.messages: list[str] = []

    def emit(self, record: LogRecord) -> None:
        self.messages.append(f"AutoAttack: {record.getMessage()}")


@contextmanager
def _quietly() -> Iterator[tuple[Logger, list[str]]]:
    """Yield a logger and the list of AutoAttack's warnings, and undo global changes on exit.

    AutoAttack's check for dynamic defenses removes any tracer (of a debugger or of coverage). Its
    counts are global and never reset: after one dynamic defense, every later model looks like one.
    """
    logger, collector = Logger("auto-attack"), _Collector()
    logger.addHandler(collector)
    tracer = sys.gettrace()
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        yield logger, collector.messages
    finally:
        sys.settrace(tracer)
