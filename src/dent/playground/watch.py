"""Record the queries of an attack: what it sends, and the logits that the first member gets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dent.attacks import DynamicDefense
from dent.attacks.losses import margin
from dent.support.predictions import is_prediction
from dent.threat import ThreatModel


@dataclass(frozen=True, eq=False)
class Look:
    """One query of an attack, reduced to the image: the first member of the batch.

    Attributes:
        query: Number of the query in the attack. Query 0 is the natural image.
        image: The image in the query, float32 (C, H, W).
        logits: Its logits, float32 (classes,).
        label: Its class.
    """

    query: int
    image: Tensor
    logits: Tensor
    label: int

    @property
    def predicted(self) -> int | None:
        """The predicted class; None if the logits are not a prediction."""
        return int(self.logits.argmax()) if bool(is_prediction(self.logits)) else None

    @property
    def right(self) -> bool:
        """Whether the prediction is the label."""
        return self.predicted == self.label

    @property
    def loss(self) -> float:
        """The cross-entropy of the label, in nats."""
        return float(F.cross_entropy(self.logits.unsqueeze(0), torch.tensor([self.label])))

    @property
    def margin(self) -> float:
        """The label's logit minus the largest other logit; below 0 if the prediction is wrong."""
        return -float(margin(self.logits.unsqueeze(0), torch.tensor([self.label])))


class AttackWatch:
    """A record of one attack's queries, and of the logits of the first member.

    Args:
        label: Class of the image.
        natural: The natural batch (N, C, H, W).
        threat: The threat model. A batch outside of it is not a find.
        notice: Called with every look. It may raise an exception to stop the attack.

    Attributes:
        looks: The looks in the order of the queries.
        batches: The whole batch (N, C, H, W) of every query.
        find: Of the queries with a wrong prediction, the one with the highest loss, and its batch;
            None if there was none.
    """

    def __init__(
        self, label: int, natural: Tensor, threat: ThreatModel, notice: Callable[[Look], None]
    ) -> None:
        self.looks: list[Look] = []
        self.batches: list[Tensor] = []
        self.find: tuple[Look, Tensor] | None = None
        self._label = label
        self._natural = natural
        self._threat = threat
        self._notice = notice

    def saw(self, images: Tensor, logits: Tensor) -> None:
        """Record a query.

        Args:
            images: The first M members of the batch, (M, C, H, W); the others are natural.
            logits: Their logits, (M, classes).
        """
        images, logits = images.detach(), logits.detach().float()
        look = Look(len(self.looks), images[0].clone(), logits[0].clone(), self._label)
        self.looks.append(look)
        batch = torch.cat([images, self._natural[len(images) :]])
        self.batches.append(batch)
        worse = self.find is None or not look.loss <= self.find[0].loss
        if not look.right and worse and not bool(self._threat.check(batch, self._natural).any()):
            self.find = look, batch
        self._notice(look)


@final
class WatchedModel(nn.Module):
    """A static model that reports every query to a watch."""

    def __init__(self, model: nn.Module, watch: AttackWatch) -> None:
        super().__init__()
        self.model = model
        self._watch = watch
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's logits."""
        logits: Tensor = self.model(x)
        self._watch.saw(x, logits)
        return logits


@final
class WatchedDefense:
    """A defense that reports every query to a watch, and otherwise behaves as the defense does.

    Attributes:
        inner: The defense.
    """

    def __init__(self, defense: DynamicDefense, watch: AttackWatch) -> None:
        self.inner = defense
        self._watch = watch

    @property
    def batch_dependent(self) -> bool:
        """What the defense declares."""
        return bool(self.inner.batch_dependent)

    def over(self, defense: DynamicDefense) -> "WatchedDefense":
        """Return another defense that reports to the same watch."""
        return WatchedDefense(defense, self._watch)

    def adapt(self, x: Tensor, **how: Any) -> Any:
        """Adapt as the defense does."""
        adapt: Callable[..., Any] = self.inner.adapt
        return adapt(x, **how)

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        """Return the defense's logits."""
        logits = self.inner.predict(x, adaptation)
        self._watch.saw(x, logits)
        return logits
