"""Look over an attack's shoulder: what it asks, and what it is answered about the first member."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dent.attacks import DynamicDefense
from dent.attacks.losses import margin
from dent.threat import ThreatModel


@dataclass(frozen=True, eq=False)
class Look:
    """One query of an attack, as far as it is about the image.

    Attributes:
        query: Its number in the attack, from 0, which is the natural image.
        image: float32 (C, H, W), as it was asked about.
        logits: float32 (classes,), the answer.
        label: The image's class.
    """

    query: int
    image: Tensor
    logits: Tensor
    label: int

    @property
    def predicted(self) -> int | None:
        """The class; None where the logits are not finite, which is no prediction."""
        return int(self.logits.argmax()) if bool(self.logits.isfinite().all()) else None

    @property
    def right(self) -> bool:
        """Whether the label was predicted."""
        return self.predicted == self.label

    @property
    def loss(self) -> float:
        """Cross-entropy of the label, in nats."""
        return float(F.cross_entropy(self.logits.unsqueeze(0), torch.tensor([self.label])))

    @property
    def margin(self) -> float:
        """The label's logit less the largest other: below 0 where the answer is wrong."""
        return -float(margin(self.logits.unsqueeze(0), torch.tensor([self.label])))


class AttackWatch:
    """Keeps what one attack asked and was answered about the first row of its batches.

    Args:
        label: Of the image.
        natural: The natural batch (N, C, H, W).
        threat: Batches outside are no finds.
        notice: Told of every look; may raise, to stop the attack.

    Attributes:
        looks: In the order of the queries.
        batches: The whole batch (N, C, H, W) of every query.
        find: The query with a wrong answer and the highest loss, and its batch; None where there
            was none.
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
        """Take note of a query.

        Args:
            images: (M, C, H, W), the first M members of the batch; the others are natural.
            logits: (M, classes).
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
    """A static model whose answers are watched."""

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
    """A defense whose answers are watched; to attacks it offers what the defense offers.

    Attributes:
        inner: The defense.
    """

    def __init__(self, defense: DynamicDefense, watch: AttackWatch) -> None:
        self.inner = defense
        self._watch = watch

    @property
    def batch_dependent(self) -> bool:
        """As the defense declares."""
        return bool(self.inner.batch_dependent)

    def over(self, defense: DynamicDefense) -> "WatchedDefense":
        """Return another defense, watched by the same."""
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
