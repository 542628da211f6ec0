"""One more attack on the first batch, toward every class, compared with the attacks of the run.

If it breaks many more members than the run, something hides them from the attacks of the run.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dent.evaluation.results.certificate import further_attack
from dent.evaluation.results.result import Gate
from dent.evaluation.results.scoring import Scores, worst_of_batch
from dent.support.plural import counted

BREAKS_MORE: Final = "another attack breaks more"
NOT_COMPARED: Final = "another attack cannot be compared"

_LUCK: Final = 0.05
"""Share of the first batch that one more attack may break beyond the run, rounded up."""
_OF_GAIN: Final = 0.5
"""Share of the gain that one more attack may break beyond the run, in the first batch."""


@dataclass(frozen=True)
class AnotherAttack:
    """How many more members of the first batch one more attack broke than the run.

    The attack changes every member. A run on mixed batches changes only some, and the record counts
    the correct members of the whole batch. So for mixed batches, only bounds are known.

    Attributes:
        least: How many more of the members that the run attacked it broke, at least.
        most: The same, at most.
        members: Number of members that the run attacked.
        clean: Number of the other members.
    """

    least: int
    most: int
    members: int
    clean: int = 0

    @property
    def breaks_more(self) -> bool:
        """Whether it breaks more than chance explains, however its breaks are distributed."""
        return self.least > self._luck

    @property
    def may_break_more(self) -> bool:
        """Whether it may break more than chance explains. One attacked member shows nothing."""
        return self.most > (min(self._luck, self.members - 1) if self.clean else self._luck)

    @property
    def _luck(self) -> int:
        return math.ceil(_LUCK * self.members)


def compare_another_attack(scores: Scores, *, samples: bool) -> AnotherAttack | None:
    """Compare one more attack on the first batch with the run.

    Args:
        scores: The scores of the records of one defense.
        samples: Whether each sample has a worst case of its own, so that several submissions may
            count for one batch.

    Returns:
        None if the attack did not run.
    """
    attack = further_attack(scores.probe)
    if attack is None or 0 not in scores.whole:
        return None
    rights, _ = worst_of_batch(scores.of_batch(0), by_sample=samples)
    left, clean = round(sum(rights)), attack.total - len(rights)
    return AnotherAttack(
        least=left - min(attack.correct, len(rights)),
        most=left - max(0, attack.correct - clean),
        members=len(rights),
        clean=clean,
    )


def another_attack_gates(another: AnotherAttack | None) -> Iterator[Gate]:
    """Yield the open gate of one more attack that breaks more than the run, or that may do so."""
    if another is None:
        return
    if another.breaks_more:
        yield _breaks_more(another)
    elif another.may_break_more:
        size = another.members + another.clean
        sentence = (
            "A claim of a gain needs that an attack toward every class breaks hardly more members "
            f"than the run. Here the run attacked {another.members} of {counted(size, 'member')} "
            f"in the first batch, and this attack all {size}: of the {another.members}, it may "
            f"have broken up to {another.most} more. Evaluate the defense without mixed batches."
        )
        yield Gate(name=NOT_COMPARED, open=True, sentence=sentence)


def gain_over_another_attack(
    another: AnotherAttack, of_static: AnotherAttack | None, gain: float
) -> Iterator[Gate]:
    """Yield an open gate if one more attack takes away more than half of the gain.

    Args:
        another: The attack on the defense, compared with the run.
        of_static: The same of the static model; None if the attack did not run on it.
        gain: The gain in robust accuracy, a share.
    """
    lead = another.least - (0 if of_static is None else max(0, of_static.least))
    if lead > _OF_GAIN * gain * another.members and not another.breaks_more:
        yield _breaks_more(another)


def _breaks_more(another: AnotherAttack) -> Gate:
    least = "at least " if another.clean else ""
    sentence = (
        f"An attack toward every class broke {least}{counted(another.least, 'member')} of "
        f"{another.members} in the first batch more than all attacks of the run together. Use a "
        "larger budget, and look for what hides these members from the attacks."
    )
    return Gate(name=BREAKS_MORE, open=True, sentence=sentence)
