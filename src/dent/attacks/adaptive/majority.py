"""A majority vote over several submissions of a batch to a randomized defense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from dent.attacks.protocol import adapted, is_batch_dependent, predicted
from dent.support.checks import check_counts
from dent.support.predictions import is_prediction
from dent.support.straight_through import exactly

if TYPE_CHECKING:
    from dent.attacks.protocol import Defense


@final
class Majority:
    """The majority vote over several submissions of a batch, each with a fresh adaptation.

    A logit is the number of votes for a class plus half its mean probability, so that confidence
    breaks ties. A row that is not a prediction does not vote, and a member without any vote gets
    NaN. The gradient is that of the mean logits.

    Clean accuracy must be reported for the same number of submissions. So evaluate this object in
    place of the defense, instead of using it only in an attack.

    Attributes:
        inner: The defense.
        submissions: Number of submissions of each batch.
    """

    def __init__(self, defense: Defense, submissions: int) -> None:
        """Wrap a defense.

        Args:
            defense: Any dynamic defense, or a plain module in eval mode, such as one that draws
                noise.
            submissions: Number of submissions, at least 2.

        Raises:
            ConfigError: `submissions` is no whole number, or less than 2.
            InputError: `defense` is neither, or is in training mode.
        """
        check_counts(2, submissions=submissions)
        is_batch_dependent(defense)
        self.inner = defense
        self.submissions = submissions

    @property
    def batch_dependent(self) -> bool:
        """Whether the defense declares that it depends on the batch."""
        return is_batch_dependent(self.inner)

    def over(self, defense: Defense) -> Majority:
        """Return the majority vote of another defense over as many submissions."""
        return Majority(defense, self.submissions)

    def adapt(self, x: Tensor, **how: Any) -> tuple[Any, ...]:
        """Return one adaptation per submission."""
        return tuple(adapted(self.inner, x, **how) for _ in range(self.submissions))

    def predict(self, x: Tensor, adaptation: tuple[Any, ...]) -> Tensor:
        """Return votes (N, classes), as described in the class."""
        answers = torch.stack([predicted(self.inner, x, draw) for draw in adaptation])
        voted = is_prediction(answers).unsqueeze(2)
        answers = torch.where(voted, answers, 0.0)
        votes = torch.zeros_like(answers).scatter(2, answers.argmax(dim=2, keepdim=True), 1.0)
        count = voted.sum(dim=0).clamp(min=1)
        sure = torch.where(voted, answers.softmax(dim=2), 0.0).sum(dim=0) / count
        mean = torch.where(voted, answers, 0.0).sum(dim=0) / count
        logits = (torch.where(voted, votes, 0.0).sum(dim=0) + sure / 2).detach()
        return torch.where(voted.any(dim=0), exactly(logits, mean), torch.nan)

    def __call__(self, x: Tensor) -> Tensor:
        """Return votes (N, classes)."""
        return self.predict(x, self.adapt(x))
