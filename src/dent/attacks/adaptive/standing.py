"""Queries without the fooled members, if no member's prediction depends on another's."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from dent.adaptation.random_state import global_draws, kept_generators
from dent.attacks.adaptive.among import Among
from dent.attacks.querier import Querier

if TYPE_CHECKING:
    from torch import Tensor

    from dent.attacks.querier import Queries, View


class MemberSelection:
    """Selects the members of later queries: those that stand, if the others may be left out.

    This is decided after a query of all members. They may not be left out if the defense is
    batch-dependent, if the batch has clean members, or if the defense draws random numbers, because
    a fooled member may then become correct again.
    """

    def __init__(self, target: Querier) -> None:
        """Start to watch the random state. Create this before the query of the natural images.

        Args:
            target: The querier of the whole batch.
        """
        self._target = target
        self._before = global_draws(target.labels.device)
        self._allowed: bool | None = None

    def without(self, fallen: Tensor) -> Querier:
        """Return the querier of the other members; of the whole batch if none may be left out.

        Args:
            fallen: bool (N,), the members to leave out.
        """
        if self._allowed is None:
            self._allowed = self._may_leave_out()
        standing = (~fallen).nonzero().flatten()
        if not self._allowed or len(standing) in (0, len(fallen)):
            return self._target
        return Standing(self._target, standing)

    def _may_leave_out(self) -> bool:
        defense = self._target.defense
        return not (
            self._target.batch_dependent
            or isinstance(defense, Among)
            or global_draws(self._target.labels.device) != self._before
            or kept_generators(defense, everywhere=True)  # also in its wrappers
            or getattr(defense, "drew", False)
        )


@final
class Standing(Querier):
    """A querier of some members of a batch. All counts are those of the whole batch."""

    def __init__(self, whole: Querier, members: Tensor) -> None:
        """Select some members.

        Args:
            whole: The querier of the whole batch.
            members: Indices of the members, int64 (M,).
        """
        super().__init__(
            whole.defense,
            whole.natural[members],
            whole.labels[members],
            whole._threat,
            plan=whole._plan,
            shared_seed=whole.shared_seed,
        )
        self._whole = whole
        self.members = self._rows = members
        self.classes = whole.classes
        self.counts = whole.counts
        self.recorder = whole.recorder

    @property
    def gradients(self) -> Tensor:
        """Number of gradients taken so far for each of the members, int64 (M,)."""
        return self._whole.gradients[self._rows]

    @property
    def zero_by_member(self) -> Tensor:
        """Number of those that were exactly zero, int64 (M,)."""
        return self._whole.zero_by_member[self._rows]

    def __call__(
        self,
        images: Tensor,
        asked: Tensor | None = None,
        view: View | None = None,
        members: Tensor | None = None,
    ) -> Tensor:
        """Return logits (M, classes) of the members' images."""
        return self._whole(images, asked, view, self._in_whole(members))

    def submit(
        self,
        images: Tensor,
        asked: Tensor | None = None,
        view: View | None = None,
        members: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (M, classes) of the members' images, and which rows are predictions."""
        return self._whole.submit(images, asked, view, self._in_whole(members))

    def finish(self) -> None:
        """Report all planned passes as done."""
        self._whole.finish()

    def took(self, gradient: Tensor, of: Tensor) -> None:
        """Count a gradient of the rows `of`."""
        self._whole.took(gradient, self._rows[of])

    def count(self, passes: Queries) -> None:
        """Count passes."""
        self._whole.count(passes)

    def _in_whole(self, members: Tensor | None) -> Tensor:
        return self._rows if members is None else self._rows[members]


def rows_of(target: Querier, whole: Tensor) -> Tensor:
    """Return the rows of the querier's members, from a tensor with one row per batch member."""
    return whole if target.members is None else whole[target.members]
