"""AutoAttack's code over a batch whose membership, order and size never change.

pyautoattack drops fooled members and queries only the rest, which a dynamic defense predicts
differently. Here its classes call a `FrozenBatch` instead of a model. Whatever rows they query, it
queries the whole batch, with the other members at their current inputs.

The member of a row is never guessed. APGD drops no member within a run, so the members of the run
are known. Square and FAB do drop members within a run, and carry the labels along with the rows.
They get the members' indices as labels, and translate an index where their code looks up a label.
Their random draws and their arithmetic do not change: on a batch-independent defense they do what
AutoAttack does, up to rounding. There the predictions of the other members are discarded, so the
queries may leave these members out.
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
from dent.support.rows import per_sample

if TYPE_CHECKING:
    from dent.attacks.querier import Querier
    from dent.threat import ThreatModel

PartRun = Callable[[Tensor], tuple[Tensor, Tensor]]
"""One run on members (M,). It returns their images (M, ...) and which are fooled, bool (M,)."""


class FrozenBatch:
    """The model given to pyautoattack. It takes some members and queries the whole batch.

    Attributes:
        target: The querier of the whole batch.
        current: (N, C, H, W), the current input of each member: its natural image, or the
            adversarial image that fooled it.
        standing: bool (N,), the members that are still correct.
        members: int64 (M,), the members of the rows in the next call, in order.
        whole: Whether a query includes the other members.
        enlarges: Whether tiny gradients are made larger, for an attack that uses only their
            direction.
    """

    def __init__(self, target: Querier, *, whole: bool = True) -> None:
        self.target = target
        self.whole = whole
        self.enlarges = False
        self.current = target.natural.clone()
        self.standing = self._right()
        self.members = torch.arange(len(self.current), device=self.current.device)

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the logits (M, classes) of the rows of `members`."""
        return self.ask(rows, self.members)

    def ask(self, rows: Tensor, members: Tensor) -> Tensor:
        """Return the logits (M, classes) of rows in place of these members, by one query.

        The gradient flows to these rows only.

        Raises:
            AttackError: There are not as many rows as members.
        """
        if len(rows) != len(members):
            raise AttackError(
                f"{counted(len(rows), 'row')} asked about, of {counted(len(members), 'member')}"
            )
        if not len(members):  # Square queries no member if all margins are exactly zero
            return rows.new_zeros(0, self.target.classes or 0)
        rows = rows.to(self.current.dtype)
        if self.enlarges and torch.is_grad_enabled() and rows.requires_grad:
            rows = rows.view_as(rows)
            rows.register_hook(enlarged)
        if not self.whole:
            return self.target(rows, members=members)
        return self.target(self.current.index_copy(0, members, rows), asked=members)[members]

    def attack(self, runs: Iterator[PartRun]) -> None:
        """Run attacks in order on the members that are still correct, until none is left."""
        for run in runs:
            members = self.standing.nonzero().flatten()
            if not len(members):
                return
            natural = self.target.natural[members]
            self.current[members] = natural
            self.members = members
            images, fooled = run(members)
            self.current[members] = torch.where(per_sample(fooled, images), images, natural)
            self.standing[members] = ~fooled
            if self.target.batch_dependent:
                # A fooled member may be correct again now that others have changed.
                self.standing = self._right()

    def _right(self) -> Tensor:
        return self.target(self.current).argmax(dim=1) == self.target.labels


class _FrozenFAB(FAB):
    """FAB with the members' indices in place of labels."""

    predict: FrozenBatch

    def _answer(self, images: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
        self.predict.members = tags
        return self.predict(images), self.predict.target.labels[tags]

    def _get_predicted_label(self, x: Tensor) -> Tensor:
        """Return the index of each correct member, else -1. FAB compares it with the index."""
        members = self.predict.members
        with torch.no_grad():
            right = self.predict(x).argmax(dim=1) == self.predict.target.labels[members]
        return torch.where(right, members, -1)


class _FrozenSquare(SquareAttack):
    """Square with the members' indices in place of labels."""

    predict: FrozenBatch

    def margin_and_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the label's logit minus the largest other, twice: Square's loss is its margin."""
        batch = self.predict
        logits = batch.ask(x, y)
        labels = batch.target.labels[y].unsqueeze(1)
        other_logits = logits.scatter(1, labels, -math.inf)
        margin = (logits.gather(1, labels) - other_logits.amax(dim=1, keepdim=True)).squeeze(1)
        # A fooled member leaves the run and keeps this input from here on.
        batch.current[y[margin <= 0]] = x[margin <= 0]
        return margin, margin.clone()


def runs_of(part: Part, batch: FrozenBatch, threat: ThreatModel, seed: int) -> Iterator[PartRun]:
    """Return the runs of one part, seeded as AutoAttack seeds it."""
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
    # Its only warning is about zero gradients, which the querier counts.
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
    # FAB minimizes the distance and has no radius. Results beyond eps do not count.
    near = (threat.distance(images, x) <= threat.eps).to(x.device)
    return _checked(batch, members, torch.where(per_sample(near, images), images, x))


def _run_square(square: Any, batch: FrozenBatch, members: Tensor) -> tuple[Tensor, Tensor]:
    _, images = square.attack_single_run(batch.target.natural[members], members)
    return _checked(batch, members, images)


def _checked(batch: FrozenBatch, members: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    batch.members = members
    return images, batch(images).argmax(dim=1) != batch.target.labels[members]
