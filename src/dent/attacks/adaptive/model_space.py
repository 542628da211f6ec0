"""Attacks on model space (Chen et al., ICLR 2022): the models that a defense may adapt to.

A defense that adapts picks a model for each batch, and an attack must anticipate which. Instead of
differentiating that choice, attack the models so far, adapt to the resulting batch, and add the
new model. With a₀ adapted to the natural batch, and rounds t = 1, 2, ...:

    xₜ ∈ argmax over the threat model of  loss over f(·, a₀), ..., f(·, aₜ₋₁)
    aₜ = adapt(xₜ),  predictions of the defense: f(xₜ, aₜ)

    fpa         the loss of the last model only ("fixed point attack": a fixed point would be an
                equilibrium)
    gmsa-avg    the mean loss over all models so far ("greedy model space attack")
    gmsa-min    for each sample, the loss of the most resistant model

The worst images of all rounds are kept: per batch if the defense is batch-dependent, else per
sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final, get_args

import torch
from torch import Tensor

from dent.attacks.adaptive.apgd import Objective, apgd, random_start
from dent.attacks.adaptive.capabilities import NOT_AVAILABLE, Unavailable
from dent.attacks.adaptive.ladder import Rung
from dent.attacks.adaptive.objectives import Aim, least_of, mean_of
from dent.attacks.adaptive.standing import MemberSelection, rows_of
from dent.attacks.base import Attack, Outcome
from dent.attacks.best import Best
from dent.attacks.checks import check_rho, effort
from dent.attacks.losses import LossName, loss_named, margin, runner_up
from dent.attacks.protocol import DynamicDefense
from dent.attacks.querier import NoGradientError, Queries
from dent.errors import ConfigError
from dent.support.checks import check_counts, check_flags

if TYPE_CHECKING:
    from dent.attacks.querier import Querier, View
    from dent.threat import Norm, ThreatModel

Ensemble = Literal["fpa", "gmsa-avg", "gmsa-min"]
ENSEMBLES: tuple[Ensemble, ...] = get_args(Ensemble)


@final
@dataclass(frozen=True)
class ModelSpace(Attack):
    """FPA, GMSA-AVG or GMSA-MIN, with APGD against the models so far.

    A plain module does not adapt, so every round is one more restart of APGD against it.

    With `unrolled`, the ensemble has one more model in every round: the defense itself, which
    adapts to the changing batch, with the exact gradient.
    """

    ensemble: Ensemble = "gmsa-min"
    """How the attack combines the models so far."""
    loss: LossName = "margin"
    """The loss to maximize."""
    rounds: int = effort(10)
    """Number of rounds. Each adds one model to that of the natural batch. The authors use 3 against
    dent."""
    iterations: int = effort(20)
    """Iterations of APGD in every round."""
    restarts: int = effort(1)
    """Number of starts from the model of the natural batch."""
    targets: int = effort(0)
    """Number of the likeliest wrong classes on the natural images to target, with one restart each.
    """
    rho: float = 0.75
    """APGD halves its step if at most this share of the steps improved the loss; in (0, 1)."""
    unrolled: bool = False
    """Whether to add the defense itself to the ensemble, with its exact gradient."""

    named_by: ClassVar = "ensemble"

    def __post_init__(self) -> None:
        """Check every field."""
        if self.ensemble not in ENSEMBLES:
            raise ConfigError(
                f"ensemble must be one of {', '.join(ENSEMBLES)}, got {self.ensemble!r}"
            )
        check_counts(1, rounds=self.rounds, iterations=self.iterations, restarts=self.restarts)
        check_counts(0, targets=self.targets)
        check_rho(self.rho)
        check_flags(unrolled=self.unrolled)
        loss_named(self.loss)
        super().__post_init__()

    @property
    def registered(self) -> Ensemble:
        """The name of the ensemble."""
        return self.ensemble

    @property
    def default_name(self) -> str:
        """The name of the ensemble, with `-unrolled` if set."""
        return self.ensemble + ("-unrolled" if self.unrolled else "")

    def on_static(self) -> ModelSpace:
        """Return the attack on a static model. With one model, all ensembles are the same."""
        return replace(self, ensemble="fpa", unrolled=False)

    def queries(self, num_classes: int, norm: Norm = "linf") -> Queries:
        """Return three passes and, per round, those of each model's iterations and one query.

        For the smallest loss, `gmsa-min` queries all models before it takes a gradient.
        """
        del norm
        runs = self._runs_of(num_classes)
        total = Queries(3, 0) + Queries(1, 0).times(self.rounds * runs)
        for count in self._models:
            loss_only = count if self.ensemble == "gmsa-min" and count > 1 else 0
            total = total + Queries(count + loss_only, count).times((self.iterations + 1) * runs)
        return total

    def unadapted(self, num_classes: int, norm: Norm = "linf") -> Queries:
        """Return the passes through models that are already adapted."""
        adapted = Queries(3 + self.rounds * self._runs_of(num_classes), 0)
        if self.unrolled:
            loss_only = 1 if self.ensemble == "gmsa-min" else 0
            per_run = Queries(1 + loss_only, 1).times(self.rounds * (self.iterations + 1))
            adapted = adapted + per_run.times(self._runs_of(num_classes))
        total = self.queries(num_classes, norm)
        return Queries(total.forwards - adapted.forwards, total.backwards - adapted.backwards)

    def through_adaptation(self, num_classes: int, norm: Norm = "linf") -> int:
        """Return one backward per iteration if the defense itself is in the ensemble, else 0."""
        del norm
        ascents = self.rounds * self._runs_of(num_classes)
        return ascents * (self.iterations + 1) if self.unrolled else 0

    @property
    def _models(self) -> list[int]:
        """The number of models that each round attacks."""
        counts = [1 if self.ensemble == "fpa" else index + 1 for index in range(self.rounds)]
        return [count + int(self.unrolled) for count in counts]

    def _runs_of(self, num_classes: int) -> int:
        return self.restarts + min(self.targets, num_classes - 1)

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        """Run all restarts and targets, but stop once all members are fooled."""
        best, selection = Best(target), MemberSelection(target)
        try:
            exact = Rung("unrolled").view(target.defense) if self.unrolled else None
            draws = torch.Generator().manual_seed(seed)
            return best.outcome(self.offer(target, threat, best, selection, draws, exact))
        except (Unavailable, NoGradientError) as missing:
            return best.outcome(notes=(f"{NOT_AVAILABLE}{self.name}: {missing}",))

    def offer(
        self,
        target: Querier,
        threat: ThreatModel,
        best: Best,
        selection: MemberSelection,
        draws: torch.Generator,
        exact: View | None = None,
    ) -> dict[str, Tensor]:
        """Offer the images of every round; return the fooled members after each, by its name.

        Args:
            target: The querier of the whole batch.
            threat: The threat model.
            best: The receiver of the offers.
            selection: Decides whether fooled members are left out.
            draws: A CPU generator for random starts.
            exact: A view of the defense itself, if it is in the ensemble.
        """
        natural_logits, first_model = _serve(target, best, target.natural)
        fooled_after: dict[str, Tensor] = {}
        ranks: list[int | None] = [None] * self.restarts
        ranks += range(1, min(self.targets, natural_logits.shape[1] - 1) + 1)
        for rank in ranks:
            # A model that was adapted to a batch only predicts that whole batch.
            adapts = isinstance(target.defense, DynamicDefense)
            part = target if adapts else selection.without(best.fallen)
            targets = runner_up(rows_of(part, natural_logits), part.labels, rank) if rank else None
            aim = Aim(loss_named(self.loss), targets)
            models = [first_model]
            for index in range(self.rounds):
                if best.complete():
                    return fooled_after
                ascent = apgd(
                    self._objective(part, models, exact, aim),
                    part.natural,
                    rows_of(part, random_start(target.natural, threat, draws)),
                    threat,
                    iterations=self.iterations,
                    rho=self.rho,
                )
                models.append(_serve(part, best, ascent.images)[1])
                fooled_after[f"{self.loss}-target-{rank}" if rank else f"round-{index + 1}"] = (
                    best.fooled
                )
        return fooled_after

    def _objective(
        self, target: Querier, models: Sequence[View], exact: View | None, aim: Aim
    ) -> Objective:
        selected = list(models[-1:] if self.ensemble == "fpa" else models)
        if exact is not None:
            selected.append(exact)
        combine = least_of if self.ensemble == "gmsa-min" else mean_of
        return combine(target, selected, aim)


def _serve(target: Querier, best: Best, images: Tensor) -> tuple[Tensor, View]:
    """Query a batch; return its logits, and the model that the defense adapted to it."""
    defense = target.defense
    if not isinstance(defense, DynamicDefense):
        return best.offer_served(images, target), defense
    adaptation = defense.adapt(images.clone())
    model: Callable[[Tensor], Tensor] = partial(_predict, defense, adaptation)
    logits = target(images, view=model)
    wrong = logits.argmax(dim=1) != target.labels
    best.offer(images, wrong, margin(logits, target.labels))
    target.recorder.broke(wrong, target.members, along=False)
    return logits, model


def _predict(defense: DynamicDefense, adaptation: Any, x: Tensor) -> Tensor:
    return defense.predict(x, adaptation)
