"""Progress of an attack over its gradients: broken members, loss and gradient norm.

The indicators of attack failure (Pintor et al., NeurIPS 2022) are derived from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

POINTS: Final = 24
"""Largest number of recorded points, not counting the last one."""
LATE: Final = 0.1
"""Share of the gradients, at the end, in which a converged attack finds nothing new."""
ROSE: Final = 0.01
"""A loss still rises if more than this share of its total rise is late."""
_DIGITS: Final = 4
_FAR: Final = 1e12
"""Largest recorded loss or norm: readers of records refuse larger ones."""


@dataclass(frozen=True)
class History:
    """Progress of an attack, at evenly spaced gradients and at the last one.

    Attributes:
        gradients: Number of gradients so far, including the one at this point.
        broken: Number of members that the defense itself misclassified at least once so far. The
            last value is from the end of the attack.
        loss: Mean cross-entropy of the latest prediction for each member, in nats: by the defense,
            or by the model that the attack uses in its place.
        norm: Mean l2 length of a member's gradient of the attack's own loss.
        late: Number of members that were first misclassified in the last tenth of the gradients.
        rising: Number of members that the attack does not claim, and whose highest cross-entropy
            made more than 1% of its total rise in the last tenth of the gradients.
        silent: Number of members that the attack broke but does not claim. For a batch-dependent
            defense: number of members by which its most broken batch exceeds its claim.
        untransferred: Number of members that the attack does not claim, and that the model in
            place of the defense misclassified but the defense never did.
    """

    gradients: tuple[int, ...]
    broken: tuple[int, ...]
    loss: tuple[float, ...]
    norm: tuple[float, ...]
    late: int
    rising: int
    silent: int
    untransferred: int


class _Point(NamedTuple):
    at: int
    loss: Tensor
    norm: Tensor
    highest: Tensor


class Recorder:
    """Records a bounded number of points of an attack on one batch, on its device.

    Attributes:
        labels: int64 (N,).
    """

    def __init__(self, labels: Tensor, *, batch_dependent: bool, of_stand_in: bool = False) -> None:
        """Start without any points.

        Args:
            labels: int64 (N,).
            batch_dependent: Whether members of a batch depend on each other.
            of_stand_in: Whether to count predictions of the model in place of the defense as
                those of the defense. For a part of an attack that is joined later.
        """
        self.labels = labels
        self._of_stand_in = of_stand_in
        self._batch_dependent = batch_dependent
        self._loss = labels.new_zeros(labels.shape, dtype=torch.float32)
        self._first = torch.full_like(self._loss, torch.inf)
        self._highest = torch.full_like(self._loss, -torch.inf)
        self._fell = torch.full_like(labels, -1)
        self._along = torch.zeros_like(labels, dtype=torch.bool)
        self._seen = torch.zeros_like(self._along)
        self._at_once = labels.new_zeros(())
        self._unanswered = True
        self._taken = 0
        self._stride = 1
        self._points: list[_Point] = []
        self._last: _Point | None = None

    def answered(self, logits: Tensor, members: Tensor | None) -> Tensor:
        """Record a prediction by the defense or by the model that the attack uses in its place.

        Args:
            logits: (M, classes), finite.
            members: The members of these rows, int64 (M,); all by default.

        Returns:
            bool (M,), True for the rows with a wrong prediction.
        """
        rows = self._everybody() if members is None else members
        self._unanswered = False
        labels = self.labels[rows]
        wrong = logits.argmax(dim=1) != labels
        loss = F.cross_entropy(logits.float(), labels, reduction="none")
        first = torch.where(self._first[rows].isinf(), loss, self._first[rows])
        highest = torch.maximum(self._highest[rows], loss)
        self._loss = self._loss.index_put((rows,), loss)
        self._first = self._first.index_put((rows,), first)
        self._highest = self._highest.index_put((rows,), highest)
        return wrong

    def broke(self, wrong: Tensor, members: Tensor | None, *, along: bool) -> None:
        """Record which members the defense itself misclassified.

        Args:
            wrong: bool (M,).
            members: The members of these rows, int64 (M,); all by default.
            along: Whether the attack may follow the gradient of this prediction.
        """
        rows = self._everybody() if members is None else members
        self._at_once = torch.maximum(self._at_once, wrong.sum())
        new = torch.zeros_like(self._along).index_put((rows,), wrong) & (self._fell < 0)
        self._fell = torch.where(new, self._taken, self._fell)
        self._along = self._along | (new & along)

    def broke_stand_in(self, wrong: Tensor, members: Tensor | None, *, along: bool) -> None:
        """Record which members the model in place of the defense misclassified.

        The arguments are those of `broke`.
        """
        if self._of_stand_in:
            self.broke(wrong, members, along=along)
            return
        rows = self._everybody() if members is None else members
        self._seen = self._seen.index_put((rows,), self._seen[rows] | wrong)

    def took(self, gradient: Tensor) -> None:
        """Record a gradient (M, ...) of the latest prediction, with one row per member.

        It is ignored before the first recorded prediction. Published AutoAttack records none,
        because it regroups members, so that the members of the rows are unknown.
        """
        if self._unanswered:
            return
        norm = gradient.detach().flatten(1).float().norm(dim=1).mean()
        self._add(_Point(self._taken, self._loss.mean(), norm, self._highest))
        self._taken += 1

    def again(self) -> Recorder:
        """Return a recorder for a part of the attack that uses models in place of the defense."""
        return Recorder(self.labels, batch_dependent=self._batch_dependent, of_stand_in=True)

    def join(self, part: Recorder, *, own: bool) -> None:
        """Append a separately recorded part of the attack.

        Args:
            part: The part. It is not changed.
            own: Whether the part attacked the defense itself.
        """
        if own:
            new = (part._fell >= 0) & (self._fell < 0)
            self._fell = torch.where(new, part._fell + self._taken, self._fell)
            self._along = self._along | (new & part._along)
            self._at_once = torch.maximum(self._at_once, part._at_once)
        else:
            self._seen = self._seen | (part._fell >= 0)
        for point in part._kept():
            highest = torch.maximum(self._highest, point.highest)
            self._add(_Point(self._taken + point.at, point.loss, point.norm, highest))
        self._first = torch.where(self._first.isinf(), part._first, self._first)
        self._highest = torch.maximum(self._highest, part._highest)
        self._loss = torch.where(part._first.isinf(), self._loss, part._loss)
        self._taken += part._taken

    def to_plain(self) -> dict[str, Any]:
        """Return the recorder as tensors and numbers."""
        points = [tuple(point) for point in self._points]
        return dict(vars(self)) | {
            "_points": points,
            "_last": None if self._last is None else tuple(self._last),
        }

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> Recorder:
        """Return the recorder that `to_plain` describes."""
        recorder = cls(plain["labels"], batch_dependent=False)
        points = [_Point(*point) for point in plain["_points"]]
        last = None if plain["_last"] is None else _Point(*plain["_last"])
        vars(recorder).update({name: plain[name] for name in vars(recorder)})
        recorder._points, recorder._last = points, last
        return recorder

    def _add(self, point: _Point) -> None:
        self._last = point
        if self._points and point.at - self._points[-1].at < self._stride:
            return
        self._points.append(point)
        if len(self._points) > POINTS:
            del self._points[1::2]
            self._stride *= 2

    def _kept(self) -> list[_Point]:
        """Return the points so far, and the last one."""
        if self._last is None or self._points[-1].at == self._last.at:
            return self._points
        return [*self._points, self._last]

    def history(self, fooled: Tensor) -> History | None:
        """Return the history, or None if no gradient was recorded.

        Args:
            fooled: bool (N,), the members that the attack claims.
        """
        if self._last is None:
            return None
        points = self._kept()
        fell = self._fell.tolist()
        ends = [point.at for point in points[:-1]]
        return History(
            gradients=tuple(point.at + 1 for point in points),
            broken=(
                *(sum(0 <= at <= end for at in fell) for end in ends),
                sum(at >= 0 for at in fell),
            ),
            loss=tuple(_rounded(point.loss) for point in points),
            norm=tuple(_rounded(point.norm) for point in points),
            late=int(((self._fell >= (1 - LATE) * self._taken) & self._along).sum()),
            rising=int(self._rising(points, ~fooled).sum()),
            silent=self._silent(fooled),
            untransferred=int((self._seen & (self._fell < 0) & ~fooled).sum()),
        )

    def _rising(self, points: list[_Point], standing: Tensor) -> Tensor:
        before = [point for point in points[:-1] if point.at < (1 - LATE) * self._taken]
        if not before:
            return torch.zeros_like(standing)
        whole = self._highest - self._first
        return standing & (whole > 0) & (self._highest - before[-1].highest > ROSE * whole)

    def _silent(self, fooled: Tensor) -> int:
        if self._batch_dependent:
            return max(int(self._at_once) - int(fooled.sum()), 0)
        return int(((self._fell >= 0) & ~fooled).sum())

    def _everybody(self) -> Tensor:
        return torch.arange(len(self.labels), device=self.labels.device)


def _rounded(value: Tensor) -> float:
    """Return a value with a few digits. One that is too large is the largest one, NaN is 0."""
    number = float(f"{float(value):.{_DIGITS}g}")
    return 0.0 if math.isnan(number) else max(-_FAR, min(number, _FAR))
