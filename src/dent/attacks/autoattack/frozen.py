"""AutoAttack's code over a batch whose membership, order and size never change.

pyautoattack drops members that have fallen and queries the rest alone, which a dynamic defense
answers differently. Here its classes talk to a `FrozenBatch` instead of a model: whatever rows
they ask about, the whole batch is submitted, the other members at their current inputs.

Which member a row belongs to is never guessed. APGD drops nobody within a run, so the members of
the run are known. Square and FAB do drop members within a run, and carry the labels along with
the rows; they are given the members' numbers as labels, and translate where the code looks one
up. Their random draws and their arithmetic are untouched: on a batch-independent defense they do
what AutoAttack does, up to rounding. There the other members' answers are thrown away, and can be
left unasked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from logging import CRITICAL, Logger
from typing import TYPE_CHECKING, Any

import torch
from pyautoattack.square import SquareAttack
from torch import Tensor

from dent.attacks.autoattack.parts import (
    FAB,
    Part,
    build_apgd,
    build_fab,
    build_square,
    dlr_is_undefined,
)
from dent.attacks.base import AttackError, reseed
from dent.attacks.steps import enlarged
from dent.support.plural import counted

if TYPE_CHECKING:
    from dent.attacks.querier import Querier
    from dent.threat import ThreatModel

PartRun = Callable[[Tensor], tuple[Tensor, Tensor]]
"""One run against some members (M,): their images (M, ...), and which of them are fooled (M,)."""


class FrozenBatch:
    """The model handed to pyautoattack: it asks about some members, this submits all of them.

    Attributes:
        target: The receiver of the whole batches.
        current: (N, C, H, W), every member's current input: its natural image, or the
            adversarial one it fell to.
        standing: bool (N,), the members that still stand.
        members: int64 (M,), whose rows the next call brings, in order.
        whole: Whether the other members are submitted along.
        enlarges: Whether tiny gradients are made larger, for an attack that follows their direction
            alone.
    """

    def __init__(self, target: Querier, *, whole: bool = True) -> None:
        self.target = target
        self.whole = whole
        self.enlarges = False
        self.current = target.natural.clone()
        self.standing = self._right()
        self.members = torch.arange(len(self.current), device=self.current.device)

    def __call__(self, rows: Tensor) -> Tensor:
        """Logits (M, classes) of the rows of `members`."""
        return self.ask(rows, self.members)

    def ask(self, rows: Tensor, members: Tensor) -> Tensor:
        """Logits (M, classes) of rows in place of these members, by one query.

        The gradient flows to the rows asked about.
        """
        if len(rows) != len(members):
            raise AttackError(
                f"{counted(len(rows), 'row')} asked about, of {counted(len(members), 'member')}"
            )
        if not len(members):  # Square asks about nobody where all margins are exactly zero
            return rows.new_zeros(0, self.target.classes or 0)
        rows = rows.to(self.current.dtype)
        if self.enlarges and torch.is_grad_enabled() and rows.requires_grad:
            rows = rows.view_as(rows)
            rows.register_hook(enlarged)
        if not self.whole:
            return self.target(rows, members=members)
        return self.target(self.current.index_copy(0, members, rows), asked=members)[members]

    def attack(self, runs: Iterator[PartRun]) -> None:
        """Run one attack after another on the members still standing, until none is left."""
        for run in runs:
            members = self.standing.nonzero().flatten()
            if not len(members):
                return
            natural = self.target.natural[members]
            self.current[members] = natural
            self.members = members
            images, fooled = run(members)
            self.current[members] = torch.where(_column(fooled, images), images, natural)
            self.standing[members] = ~fooled
            if self.target.batch_dependent:
                # A member that fell beside others may stand again now that they have moved.
                self.standing = self._right()

    def _right(self) -> Tensor:
        return self.target(self.current).argmax(dim=1) == self.target.labels


class _FrozenFAB(FAB):
    """FAB with the members' numbers in place of labels."""

    predict: FrozenBatch

    def _answer(self, images: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
        self.predict.members = tags
        return self.predict(images), self.predict.target.labels[tags]

    def _get_predicted_label(self, x: Tensor) -> Tensor:
        """The member's number where it is answered rightly, else -1: compared with the number."""
        members = self.predict.members
        with torch.no_grad():
            right = self.predict(x).argmax(dim=1) == self.predict.target.labels[members]
        return torch.where(right, members, -1)


class _FrozenSquare(SquareAttack):
    """Square with the members' numbers in place of labels."""

    predict: FrozenBatch

    def margin_and_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The label's logit less the largest other, twice: Square's loss is the margin."""
        batch = self.predict
        logits = batch.ask(x, y)
        labels = batch.target.labels[y].unsqueeze(1)
        other_logits = logits.scatter(1, labels, -math.inf)
        margin = (logits.gather(1, labels) - other_logits.amax(dim=1, keepdim=True)).squeeze(1)
        # A fooled member leaves the run and keeps this input from here on.
        batch.current[y[margin <= 0]] = x[margin <= 0]
        return margin, margin.clone()


def runs_of(part: Part, batch: FrozenBatch, threat: ThreatModel, seed: int) -> Iterator[PartRun]:
    """The runs of one part, seeded as AutoAttack seeds it."""
    device = batch.current.device
    reseed(seed, device)
    batch.enlarges = part.name.startswith("apgd") and threat.norm == "l2"
    if part.name.startswith("apgd"):
        return _apgd_runs(part, batch, threat, seed)
    if part.name.startswith("fab"):
        fab = build_fab(_FrozenFAB, batch, part, threat, seed, device)
        return _fab_runs(fab, part, batch, threat)
    square = build_square(_FrozenSquare, batch, part, threat, seed, device)
    square.init_hyperparam(batch.current)
    return (partial(_run_square, square, batch) for _ in range(part.restarts))


def _apgd_runs(part: Part, batch: FrozenBatch, threat: ThreatModel, seed: int) -> Iterator[PartRun]:
    classes = batch.target.classes or 0
    # Its one warning is of zero gradients, which are counted instead.
    silent = Logger("silent", level=CRITICAL)
    apgd = build_apgd(batch, part, threat, seed, batch.current.device, silent)
    if dlr_is_undefined(part, classes):
        apgd.loss = "ce-targeted" if part.targets else "ce"
    apgd.init_hyperparam(batch.current)
    return (
        partial(_run_apgd, apgd, batch, rank)
        for rank in part.ranks(classes)
        for _ in range(part.restarts)
    )


def _run_apgd(
    apgd: Any, batch: FrozenBatch, rank: int | None, members: Tensor
) -> tuple[Tensor, Tensor]:
    x, y = batch.target.natural[members], batch.target.labels[members]
    if rank is not None:
        apgd.y_target = batch(x).argsort(dim=1)[:, -rank]
    if apgd.use_largereps:
        total, third = apgd.n_iter_orig, math.ceil(0.3 * apgd.n_iter_orig)
        radii = [scale * apgd.eps_orig for scale in (3.0, 2.0, 1.0)]
        result = apgd.decr_eps_pgd(x, y, radii, [third, third, total - 2 * third])
    else:
        result = apgd.attack_single_run(x, y)
    _, standing, _, images = result
    return images, ~standing.bool()


def _fab_runs(fab: Any, part: Part, batch: FrozenBatch, threat: ThreatModel) -> Iterator[PartRun]:
    return (
        partial(_run_fab, fab, batch, threat, rank, restart > 0)
        for rank in part.ranks(batch.target.classes or 0)
        for restart in range(part.restarts)
    )


def _run_fab(
    fab: Any,
    batch: FrozenBatch,
    threat: ThreatModel,
    rank: int | None,
    random_start: bool,
    members: Tensor,
) -> tuple[Tensor, Tensor]:
    x = batch.target.natural[members]
    fab.target_class = rank
    images = fab.attack_single_run(
        x, members, use_rand_start=random_start, is_targeted=rank is not None
    )
    # FAB minimizes the distance without a radius: results beyond it do not count.
    near = (threat.distance(images, x) <= threat.eps).to(x.device)
    return _checked(batch, members, torch.where(_column(near, images), images, x))


def _run_square(square: Any, batch: FrozenBatch, members: Tensor) -> tuple[Tensor, Tensor]:
    _, images = square.attack_single_run(batch.target.natural[members], members)
    return _checked(batch, members, images)


def _checked(batch: FrozenBatch, members: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    batch.members = members
    return images, batch(images).argmax(dim=1) != batch.target.labels[members]


def _column(flags: Tensor, images: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (images.ndim - 1))
