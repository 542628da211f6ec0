"""APGD through a defense, by any rung of the gradient ladder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, final, get_args

import torch
from torch import Tensor

from dent.attacks.adaptive.apgd import apgd, random_start
from dent.attacks.adaptive.capabilities import NOT_AVAILABLE, Unavailable
from dent.attacks.adaptive.ladder import THROUGH_STEPS, Rung, RungName
from dent.attacks.adaptive.model_space import ModelSpace
from dent.attacks.adaptive.objectives import Aim, through
from dent.attacks.adaptive.standing import MemberSelection, rows_of
from dent.attacks.adaptive.static_ascents import StaticAscent
from dent.attacks.adaptive.unmasked import Unmasked
from dent.attacks.base import Attack, Outcome
from dent.attacks.best import Best
from dent.attacks.checks import LATER, check_rho, effort
from dent.attacks.losses import LOSSES, LossName, loss_named, runner_up
from dent.attacks.protocol import DynamicDefense
from dent.attacks.querier import NoGradientError, Queries
from dent.errors import ConfigError
from dent.support.checks import check_counts, check_flags, is_number

if TYPE_CHECKING:
    from dent.attacks.querier import Querier, View
    from dent.threat import Norm, ThreatModel


LossesAt = Literal["last", "all"]


class _Run(NamedTuple):
    """One planned run of APGD.

    Attributes:
        name: Its name in `Outcome.fooled_after`.
        loss: The loss to maximize.
        rank: The place of the target among the wrong classes, from 1; None for no target.
    """

    name: str
    loss: LossName
    rank: int | None


class _AttackedBatch(NamedTuple):
    """What all runs on a batch share.

    Attributes:
        target: The querier of the whole batch.
        threat: The threat model.
        best: Receives the images of all runs.
        selection: Decides whether fooled members are left out.
        natural_logits: Logits of the natural images, (N, classes).
        draws: A CPU generator for random starts.
    """

    target: Querier
    threat: ThreatModel
    best: Best
    selection: MemberSelection
    natural_logits: Tensor
    draws: torch.Generator

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.natural_logits.shape[1]


@final
@dataclass(frozen=True)
class AdaptiveAPGD(Attack):
    """APGD on a whole batch through one rung of the gradient ladder.

    It runs once per loss and restart, each time from a new random start, then once per target. If
    the rung predicts what the defense predicts, every batch of a run counts. With a stand-in, a run
    maximizes the stand-in's loss and then queries the defense with the resulting batch.

    If a defense does not offer what the rung needs, the attack returns the natural images, with a
    note that begins with "not available: " and says what is missing. On a plain module, which does
    not adapt, all rungs are the exact gradient.
    """

    rung: RungName = "unrolled"
    """The gradient to follow."""
    steps: int | None = None
    """Number of steps, for `fewer-steps` and `truncated`."""
    losses: tuple[LossName, ...] = effort(("ce", "margin"))
    """Untargeted losses, each with `restarts` runs; as text, `ce+margin`."""
    iterations: int = effort(50)
    """Iterations of APGD in every run."""
    restarts: int = effort(1)
    """Number of runs of every untargeted loss."""
    targets: int = effort(0)
    """Number of the likeliest wrong classes on the natural images to target, with one run each; 0
    skips targets."""
    targeted: LossName = "dlr"
    """The loss of the targeted runs."""
    rho: float = 0.75
    """APGD halves its step if at most this share of the steps improved the loss; in (0, 1). Not
    used in l1."""
    submissions: int = effort(1)
    """Number of passes whose mean is one gradient (EOT)."""
    warm: bool = False
    """Whether the first run of each loss starts from the result of a margin attack on the static
    model. The defense is queried with that result, too, so the attack is at least as strong as that
    transfer attack."""
    joint: bool = False
    """Whether the batch's mean loss decides on step sizes, instead of each member's loss."""
    unmask: bool = effort(False, later=True)
    """Whether to recover gradients that saturation or rounding hides (see `unmasked`)."""
    pool: int = effort(0, later=True)
    """With `warm`: also attack the static model toward this many of the likeliest wrong classes.
    Each member starts from its image with the highest margin loss on the defense."""
    rounds: int = effort(0, later=True)
    """With `pool`: add the results of this many rounds of `gmsa-min`, if the defense adapts."""
    stride: float = field(default=2.0, metadata=LATER)
    """APGD's first step, in units of eps (in l1, of eps / 2); above 0, at most 2."""
    larger: bool = field(default=False, metadata=LATER)
    """For `fewer-steps`: whether to make the steps larger, so that together they go as far as the
    defense's."""
    losses_at: LossesAt = field(default="last", metadata=LATER)
    """`last`: maximize the loss of the final prediction. `all`: maximize the mean loss of the final
    prediction and of those before every adaptation step that the gradient passes through."""
    smooth_signs: float = field(default=0.0, metadata=LATER)
    """Temperature of a tanh whose gradient replaces that of signs; 0 leaves signs as they are."""

    named_by: ClassVar = "rung"

    def __post_init__(self) -> None:
        """Check every field."""
        check_counts(
            1, iterations=self.iterations, restarts=self.restarts, submissions=self.submissions
        )
        check_counts(0, targets=self.targets, pool=self.pool, rounds=self.rounds)
        check_rho(self.rho)
        check_flags(warm=self.warm, joint=self.joint, unmask=self.unmask)
        object.__setattr__(self, "losses", _read_losses(self.losses))
        if self.pool and not self.warm:
            raise ConfigError(f"pool is for warm=true, got {self.pool} without it")
        if self.rounds and not self.pool:
            raise ConfigError(f"rounds are for a pool, got {self.rounds} without one")
        if not (is_number(self.stride) and 0 < self.stride <= 2):
            raise ConfigError(f"stride must be above 0, up to 2 (in eps), got {self.stride!r}")
        if not self.losses and not self.targets:
            raise ConfigError("an attack needs a loss or a target")
        loss_named(self.targeted)
        self._check_rung()
        super().__post_init__()

    def _check_rung(self) -> None:
        if self.losses_at not in get_args(LossesAt):
            known = " or ".join(get_args(LossesAt))
            raise ConfigError(f"losses_at must be {known}, got {self.losses_at!r}")
        rung = self._rung  # also checks the settings of the rung
        if self.losses_at == "all" and rung.name not in THROUGH_STEPS:
            raise ConfigError(
                f"losses_at=all is for gradients through steps ({', '.join(THROUGH_STEPS)}), got "
                f"it with {self.rung}"
            )

    @property
    def registered(self) -> str:
        """`adaptive-` and the name of the rung."""
        return f"adaptive-{self.rung}"

    def on_static(self) -> AdaptiveAPGD:
        """Return the attack with the exact gradient. `transfer` stays, as it goes past success.

        Settings that only help against an adaptation are reset: a warm start, a shorter stride, the
        hinge loss, and several submissions.
        """
        rung: RungName = self.rung if self.rung == "transfer" else "unrolled"
        losses = tuple(dict.fromkeys("margin" if loss == "hinge" else loss for loss in self.losses))
        plain = replace(self, rung=rung, steps=None, losses=losses, stride=2.0, larger=False)
        plain = replace(plain, losses_at="last", smooth_signs=0.0)
        return replace(plain, warm=False, pool=0, rounds=0, submissions=1)

    def queries(self, num_classes: int, norm: Norm = "linf") -> Queries:
        """Return `iterations + 1` passes times `submissions` per run, and three more.

        The three are for the natural images, the members' strongest images, and the result. A run
        with a stand-in takes one more. A warm start is a run of its own, and so is each target of
        its pool. Rounds of `gmsa-min` cost the same as in that attack, without its result.
        """
        del norm
        runs = self._runs_of(num_classes)
        per_run = self._ascent.times(self.submissions)
        if self._is_shared:
            per_run = StaticAscent(iterations=self.iterations).passes()
        if self._rung.stands_in:
            per_run = per_run + Queries(1, 0)
        transferred = self._transfer + Queries(1, 0)
        transferred = transferred.times(self._transfers_of(num_classes))
        total = Queries(3, 0) + per_run.times(runs) + transferred
        if self.rounds:
            found = self._space.queries(num_classes)
            total = total + Queries(found.forwards - 2, found.backwards)
        return total

    def unadapted(self, num_classes: int, norm: Norm = "linf") -> Queries:
        """Return the passes of the attacks on the static model."""
        del norm
        total = self._transfer.times(self._transfers_of(num_classes))
        if self.rung == "transfer":
            ascent = self._transfer if self._is_shared else self._ascent.times(self.submissions)
            total = total + ascent.times(self._runs_of(num_classes))
        return total + self._space.unadapted(num_classes) if self.rounds else total

    def through_adaptation(self, num_classes: int, norm: Norm = "linf") -> int:
        """Return the number of gradients of all runs for `unrolled`, else 0."""
        del norm
        exact = self.rung == "unrolled"
        runs = self._runs_of(num_classes) * self.submissions
        return self._ascent.times(runs).backwards if exact else 0

    def _runs_of(self, num_classes: int) -> int:
        return len(self.losses) * self.restarts + min(self.targets, num_classes - 1)

    def _transfers_of(self, num_classes: int) -> int:
        """Return how many attacks on the static model a warm start takes."""
        return 1 + min(self.pool, num_classes - 1) if self.warm else 0

    @property
    def _space(self) -> ModelSpace:
        """The model-space attack that fills a pool."""
        return ModelSpace(rounds=max(1, self.rounds), iterations=self.iterations, rho=self.rho)

    @property
    def _rung(self) -> Rung:
        """The rung with its settings."""
        return Rung(self.rung, self.steps, self.larger, self.smooth_signs)

    @property
    def _ascent(self) -> Queries:
        """The passes of a run of APGD."""
        return Queries(self.iterations + 1, self.iterations + 1)

    @property
    def _transfer(self) -> Queries:
        """The passes of an ascent on the static model."""
        return StaticAscent(iterations=self.iterations).passes()

    @property
    def _is_shared(self) -> bool:
        """Whether the runs are ascents on the static model that other attacks share."""
        changed = self.joint or self.unmask or self.warm or self.stride != 2.0
        return self.rung == "transfer" and self.submissions == 1 and not changed

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        """Run until all members are fooled or all runs are done."""
        best, selection = Best(target), MemberSelection(target)
        natural_logits = best.offer_served(target.natural)
        draws = torch.Generator().manual_seed(seed)
        batch = _AttackedBatch(target, threat, best, selection, natural_logits, draws)
        on_the_way: list[Tensor] | None = [] if self.losses_at == "all" else None
        on_step = None if on_the_way is None else on_the_way.append
        try:
            view = self._rung.view(target.defense, on_step)
            if self._is_shared:
                return self._transfers(batch, view)
            return self._runs(batch, Unmasked(view) if self.unmask else view, on_the_way)
        except (Unavailable, NoGradientError) as missing:
            return best.outcome(notes=(f"{NOT_AVAILABLE}{self.rung}: {missing}",))

    def _runs(self, batch: _AttackedBatch, view: View, on_the_way: list[Tensor] | None) -> Outcome:
        """Run APGD through a view of the defense, once for each planned run.

        Args:
            batch: The batch.
            view: The view to follow.
            on_the_way: Where the view puts the logits before each adaptation step; None if only
                those of the final prediction count.
        """
        best = batch.best
        served = None if self._rung.stands_in else best
        warm = self._warm(batch) if self.warm else None
        fooled_after: dict[str, Tensor] = {}
        for run in self._planned(batch.classes):
            if best.complete():
                break
            part = batch.selection.without(best.fallen)
            logits = rows_of(part, batch.natural_logits)
            targets = runner_up(logits, part.labels, run.rank) if run.rank else None
            aim = Aim(loss_named(run.loss), targets, on_the_way)
            start = random_start(batch.target.natural, batch.threat, batch.draws)
            is_warm = warm is not None and run.name not in fooled_after and run.rank is None
            if warm is not None and is_warm:
                start = warm
            ascent = apgd(
                through(part, view, aim, served, self.submissions),
                part.natural,
                rows_of(part, start),
                batch.threat,
                iterations=self.iterations,
                rho=self.rho,
                joint=self.joint,
                stride=self.stride,
                warm=is_warm,
                stop=None if served is None else served.complete,
            )
            if served is None:
                best.offer_served(ascent.images, part)
            fooled_after[run.name] = best.fooled
        return best.outcome(fooled_after)

    def _transfers(self, batch: _AttackedBatch, static_view: View) -> Outcome:
        """Query the defense with the results of ascents on the static model."""
        best = batch.best
        fooled_after: dict[str, Tensor] = {}
        for index, run in enumerate(self._planned(batch.classes)):
            if best.complete():
                break
            ascent = StaticAscent(
                run.loss,
                self.iterations,
                rank=run.rank or 0,
                restart=0 if run.rank else index % self.restarts,
                rho=self.rho,
            )
            best.offer_served(ascent.run(batch.target, [static_view], batch.threat))
            fooled_after[run.name] = best.fooled
        return best.outcome(fooled_after)

    def _warm(self, batch: _AttackedBatch) -> Tensor:
        """Return the starting points of the runs, from attacks on the static model."""
        target, threat, best = batch.target, batch.threat, batch.best
        static_view = Rung("transfer").view(target.defense)
        warm = target.natural
        for rank in range(self._transfers_of(batch.classes)):
            ascent = StaticAscent("margin", self.iterations, rank=rank, rho=self.rho)
            warm = ascent.run(target, [static_view], threat)
            best.offer_served(warm)
        if self.rounds and isinstance(target.defense, DynamicDefense):
            self._space.offer(target, threat, best, batch.selection, batch.draws)
        return best.strongest if self.pool else warm

    def _planned(self, num_classes: int) -> Iterator[_Run]:
        for loss in self.losses:
            for _ in range(self.restarts):
                yield _Run(loss, loss, None)
        for rank in range(1, min(self.targets, num_classes - 1) + 1):
            yield _Run(f"{self.targeted}-target-{rank}", self.targeted, rank)


def _read_losses(losses: object) -> tuple[LossName, ...]:
    """Return the names of losses, from a sequence or from a text such as `ce+margin`.

    Raises:
        ConfigError: There is no loss of one of these names.
    """
    names = losses.split("+") if isinstance(losses, str) else losses
    if not isinstance(names, list | tuple):
        raise ConfigError(f"losses must be names such as 'ce+margin', got {losses!r}")
    for name in names:
        loss_named(name)
    return tuple(loss for name in names for loss in LOSSES if loss == name)
