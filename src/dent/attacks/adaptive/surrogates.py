"""Transfer attacks from several models, and from one trained on the defense's predictions.

Images that fool other models also fool many defenses, whatever these do to their gradients
(Papernot et al. 2017). The models are the static model and the available surrogates, each alone and
all together. Then the model that agrees most with the defense is copied. The copy is trained on the
defense's predictions near this batch, and attacked in place of the defense.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dent.attacks.adaptive.adaptive_apgd import AdaptiveAPGD
from dent.attacks.adaptive.apgd import apgd, random_start
from dent.attacks.adaptive.capabilities import (
    NOT_AVAILABLE,
    Unavailable,
    static_base,
    surrogates_of,
)
from dent.attacks.adaptive.objectives import Aim, mean_of
from dent.attacks.adaptive.static_ascents import StaticAscent
from dent.attacks.base import Attack, Outcome
from dent.attacks.best import Best
from dent.attacks.checks import effort
from dent.attacks.losses import loss_named
from dent.attacks.querier import Queries
from dent.attacks.steps import uniform_in_ball
from dent.support.checks import check_counts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dent.attacks.querier import Querier
    from dent.threat import Norm, ThreatModel

_MOST = 4
"""Largest number of models, so that the cost of a batch is known in advance."""
_RATE = 0.02
_FAILED = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""Errors of a model that cannot be copied."""
_TAUGHT = 3
"""Cost of a training step, in forwards."""


@final
@dataclass(frozen=True)
class Surrogates(Attack):
    """APGD on the margin of other models. Its images are then submitted to the defense."""

    iterations: int = effort(20)
    """Iterations of APGD on every model."""
    lessons: int = effort(2)
    """Number of times to train and attack the copy. Each lesson queries two more batches."""
    epochs: int = effort(4)
    """Training passes over all predictions so far, in each lesson."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_counts(1, iterations=self.iterations, epochs=self.epochs)
        check_counts(0, lessons=self.lessons)
        super().__post_init__()

    @property
    def registered(self) -> str:
        """`surrogates`."""
        return "surrogates"

    def queries(self, num_classes: int, norm: Norm = "linf") -> Queries:
        """Return the queries of the defense, plus the passes of `unadapted`.

        The defense gets the natural images, the result of each model and of all together, two
        batches per lesson, and two at the end.
        """
        total = Queries(3 + _MOST + 1 + 2 * self.lessons, 0)
        return total + self.unadapted(num_classes, norm)

    def on_static(self) -> Attack:
        """Return the attack on the static model itself, about which other models reveal less."""
        return AdaptiveAPGD(
            "transfer", losses=("margin",), targeted="margin", iterations=self.iterations
        )

    def unadapted(self, num_classes: int, norm: Norm = "linf") -> Queries:
        """Return the passes through the models, and those that train the copy."""
        del num_classes, norm
        # Each model is attacked alone, then all of them together.
        ascents = self._ascent.passes(2 * _MOST)
        lessons = Queries(self.iterations + 1, self.iterations + 1).times(self.lessons)
        # There is one batch of predictions at first. Each lesson adds two.
        taught = sum(self.epochs * (1 + 2 * lesson) for lesson in range(1, self.lessons + 1))
        return ascents + lessons + Queries(_TAUGHT * taught + _MOST, 0)

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        """Attack every model alone, all together, and the copy after each lesson."""
        best = Best(target)
        natural_logits = best.offer_served(target.natural)
        models = _models(target)
        if not models:
            missing = f"{NOT_AVAILABLE}{self.name}: there is no other model to transfer from"
            return best.outcome(notes=(missing,))
        draws = torch.Generator().manual_seed(seed)
        fooled_after: dict[str, Tensor] = {}
        groups = {name: [model] for name, model in models.items()}
        if len(models) > 1:
            groups["all"] = list(models.values())
        for name, group in groups.items():
            if best.complete():
                return best.outcome(fooled_after)
            best.offer_served(self._ascent.run(target, group, threat))
            fooled_after[name] = best.fooled
        try:
            student = _Student(target, models, natural_logits)
        except _CopyError as failed:
            return best.outcome(fooled_after, notes=(f"no lessons: {failed}",))
        for lesson in range(1, self.lessons + 1):
            if best.complete() or not student.parameters:
                break
            noise = uniform_in_ball(target.natural, threat, draws).sign() * threat.eps
            nearby = threat.project(target.natural + noise, target.natural)
            student.hear(nearby, best.offer_served(nearby))
            student.learn(self.epochs)
            adversarial = self._attack(target, threat, student.model, draws)
            student.hear(adversarial, best.offer_served(adversarial))
            fooled_after[f"lesson-{lesson}"] = best.fooled
        return best.outcome(fooled_after)

    @property
    def _ascent(self) -> StaticAscent:
        return StaticAscent(iterations=self.iterations)

    def _attack(
        self, target: Querier, threat: ThreatModel, student: nn.Module, draws: torch.Generator
    ) -> Tensor:
        return apgd(
            mean_of(target, [student], Aim(loss_named("margin"))),
            target.natural,
            random_start(target.natural, threat, draws),
            threat,
            iterations=self.iterations,
        ).images


class _CopyError(Exception):
    """A model cannot be copied."""


class _Student:
    """A copy of the model that agrees most with the defense, trained on its predictions.

    Attributes:
        model: The copy, in eval mode.
        parameters: Its parameters, all of which are trained.

    Raises:
        _CopyError: The model cannot be copied.
    """

    def __init__(
        self, target: Querier, models: Mapping[str, nn.Module], natural_logits: Tensor
    ) -> None:
        labels = natural_logits.argmax(dim=1)
        with torch.no_grad():
            agreeing = {
                name: int((target(target.natural, view=model).argmax(dim=1) == labels).sum())
                for name, model in models.items()
            }
        model = models[max(agreeing, key=lambda name: agreeing[name])]
        try:
            self.model = copy.deepcopy(model).eval()
        except _FAILED as error:
            raise _CopyError(
                f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error})"
            ) from error
        self.parameters = list(self.model.parameters())
        for parameter in self.parameters:  # a ScriptModule has no requires_grad_
            parameter.requires_grad_()
        self._heard = [(target.natural, labels)]
        self._target = target

    def hear(self, images: Tensor, logits: Tensor) -> None:
        """Store the defense's predictions for a batch."""
        self._heard.append((images.detach(), logits.argmax(dim=1)))

    def learn(self, epochs: int) -> None:
        """Train on all predictions so far."""
        parameters = self.parameters
        optimizer = torch.optim.SGD(parameters, lr=_RATE, momentum=0.9)
        for _ in range(epochs):
            for images, labels in self._heard:
                with torch.enable_grad():
                    loss = F.cross_entropy(self.model(images.clone()).float(), labels)
                    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                self._target.count(Queries(_TAUGHT, 0))
        optimizer.zero_grad()


def _models(target: Querier) -> dict[str, nn.Module]:
    """Return the models to transfer from: the static model, and the available surrogates."""
    models: dict[str, nn.Module] = {}
    with suppress(Unavailable):
        models["base"] = static_base(target.defense)
    models |= surrogates_of(target.defense)
    return dict(list(models.items())[:_MOST])
