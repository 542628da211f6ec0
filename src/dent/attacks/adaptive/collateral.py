"""An attack on the clean members: the attacked members make the defense misclassify them.

Wu et al., "Uncovering Adversarial Risks of Test-Time Adaptation" (ICML 2023), call it distribution
invading attack. With B the attacked members and y the labels of the clean members, it solves

    max over x_B in the threat model of  mean over j ∉ B of  loss(f(x_j, a(x)), y_j)

It only works through what the members share: adapted parameters or batch statistics. Wu et al.
hold the adapted parameters constant and differentiate through the batch statistics. Here the
gradient is exact if the defense offers it, and otherwise that of Wu et al.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from dent.attacks.adaptive.among import Among
from dent.attacks.adaptive.apgd import Evaluation, apgd, random_start
from dent.attacks.adaptive.capabilities import NOT_AVAILABLE, Unavailable, adapt_accepts
from dent.attacks.base import Attack, Outcome
from dent.attacks.checks import check_rho, effort
from dent.attacks.losses import LossName, loss_named
from dent.attacks.querier import Queries
from dent.support.checks import check_counts
from dent.support.predictions import bounded, is_prediction

if TYPE_CHECKING:
    from dent.attacks.querier import Querier
    from dent.threat import Norm, ThreatModel


@final
@dataclass(frozen=True)
class Collateral(Attack):
    """A perturbation of the attacked members so that the clean members are misclassified.

    The defense must be an `Among`, which knows the clean members and their labels. For any other
    defense, the attack returns the natural images, with a note that it is not available. The
    outcome for the clean members is in the notes. The result itself covers the attacked members,
    as for every attack.
    """

    loss: LossName = "margin"
    """The untargeted loss of the clean members."""
    iterations: int = effort(50)
    """Iterations of APGD."""
    restarts: int = effort(1)
    """Number of random starts."""
    rho: float = 0.75
    """APGD halves its step if at most this share of the steps improved the loss; in (0, 1)."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_counts(1, iterations=self.iterations, restarts=self.restarts)
        check_rho(self.rho)
        loss_named(self.loss)
        super().__post_init__()

    @property
    def registered(self) -> str:
        """`collateral`."""
        return "collateral"

    def queries(self, num_classes: int, norm: Norm = "linf") -> Queries:
        """Return `iterations + 1` passes per restart, two before the first, and one at the end."""
        del num_classes, norm
        per_restart = Queries(self.iterations + 1, self.iterations + 1)
        return Queries(3, 0) + per_restart.times(self.restarts)

    def through_adaptation(self, num_classes: int, norm: Norm = "linf") -> int:
        """Return all backwards of `queries`, as if the defense offers an exact gradient."""
        return self.queries(num_classes, norm).backwards

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        """Run all restarts, but stop once no clean member is correct."""
        natural_wrong = target(target.natural).argmax(dim=1) != target.labels
        try:
            clean = _clean_members(target)
        except Unavailable as missing:
            return Outcome(target.natural, natural_wrong, notes=(f"{NOT_AVAILABLE}{missing}",))
        exact = adapt_accepts(clean, "differentiable")
        worst = _Worst(target.natural)
        self._ask(target, clean, worst, exact=None)(target.natural)
        wrong_before = worst.wrong
        draws = torch.Generator().manual_seed(seed)
        for _ in range(self.restarts):
            if worst.wrong == len(clean.labels):
                break
            apgd(
                self._ask(target, clean, worst, exact=exact),
                target.natural,
                random_start(target.natural, threat, draws),
                threat,
                iterations=self.iterations,
                rho=self.rho,
                joint=True,
                stop=lambda: worst.wrong == len(clean.labels),
            )
        fooled = target(worst.images).argmax(dim=1) != target.labels
        count = len(clean.labels)
        through = "exact gradient" if exact else "gradient through the final forward alone"
        note = (
            f"clean members right: {count - worst.wrong} of {count}, {count - wrong_before} "
            f"without the attack ({through})"
        )
        return Outcome(worst.images, fooled, notes=(note,))

    def _ask(self, target: Querier, clean: Among, worst: _Worst, *, exact: bool | None) -> Any:
        """Return an objective: the clean members' mean loss. No gradient if `exact` is None."""

        def objective(images: Tensor) -> Evaluation:
            with torch.set_grad_enabled(exact is not None):
                leaf = images.detach().requires_grad_(exact is not None)
                logits = clean.answer_others(leaf, exact=bool(exact)).float()
                predicted, logits = is_prediction(logits), bounded(logits)
                losses = loss_named(self.loss)(logits, clean.labels)
                mean = torch.where(predicted, losses, 0.0).mean()
            target.count(Queries(1, 0))
            wrong = ~predicted | (logits.argmax(dim=1) != clean.labels)
            worst.offer(images, int(wrong.sum()), float(mean))
            gradient = torch.zeros_like(images)
            if exact is not None:
                if mean.requires_grad:
                    (gradient,) = torch.autograd.grad(mean, leaf, materialize_grads=True)
                gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
                target.took(gradient, torch.arange(len(gradient), device=gradient.device))
                target.count(Queries(0, 1))
            return Evaluation(mean.detach().expand(len(images)), gradient)

        return objective


class _Worst:
    """The attacked members' images that left the fewest clean members correct."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.wrong = -1
        self._loss = -torch.inf

    def offer(self, images: Tensor, wrong: int, loss: float) -> None:
        if (wrong, loss) > (self.wrong, self._loss):
            self.images, self.wrong, self._loss = images.detach().clone(), wrong, loss


def _clean_members(target: Querier) -> Among:
    """Return the defense with the clean members of the batch.

    Raises:
        Unavailable: There are no clean members, or their predictions do not depend on others.
    """
    defense = target.defense
    if not isinstance(defense, Among) or not len(defense.labels):
        raise Unavailable("the whole batch is the attacker's: there are no clean members to attack")
    if not defense.batch_dependent:
        raise Unavailable("the defense declares that no member's answer depends on the others")
    return defense
