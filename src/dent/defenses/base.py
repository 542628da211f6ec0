"""What the reference defenses share: the protocol, and how they describe themselves."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

from torch import Tensor, nn

from dent.config import DentConfig
from dent.defenses.dent import Dent

STATIC = DentConfig(steps=0)
"""No step, train statistics, no smoothing: the model itself."""


class ReferenceDefense(nn.Module, ABC):
    """A dynamic defense: `adapt` to a batch, then `predict` it.

    Subclasses implement `adapt`, `predict`, `settings` and `batch_dependent`, and name themselves.
    They compute the model only through `classifier`, or through copies of their own, so that it is
    always in eval mode and never written to.

    Args:
        model: takes a batch (N, ...) and returns logits (N, classes). Stays the caller's.
        config: how `classifier` computes it; by default as it is.

    Attributes:
        name: what the defense is called in records.
        classifier: the model to call: in eval mode, never written to, with gradient to the input.

    Raises:
        UnsupportedModelError: the model cannot be computed in this way.
    """

    name: ClassVar[str]

    def __init__(self, model: nn.Module, config: DentConfig = STATIC) -> None:
        super().__init__()
        self.classifier = Dent(model, config)

    @property
    @abstractmethod
    def batch_dependent(self) -> bool:
        """Whether a sample's prediction can depend on its neighbours in the batch."""

    @property
    def stateful(self) -> bool:
        """Whether a prediction can depend on the batches before, and so on their order."""
        return False

    @property
    def randomized(self) -> bool:
        """Whether the same batch can be answered differently twice."""
        return False

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything else that decides what the defense answers, as plain JSON types."""

    @abstractmethod
    def adapt(self, x: Tensor, *, differentiable: bool = False) -> Any:
        """Adapt to a batch.

        Args:
            x: (N, ...) of floats. Rows with NaN or infinity are left out.
            differentiable: keep the graph to `x`, for the exact gradient of what is predicted with
                the result. Otherwise the result is a constant to autograd.

        Returns:
            What `predict` needs.
        """

    @abstractmethod
    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        """Return logits (N, classes) for `x` under an adaptation, with gradient to `x`.

        Rows whose input is not finite are NaN.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Return `predict(x, adapt(x))`; not to be overridden."""
        return self.predict(x, self.adapt(x))

    @final
    def describe(self) -> dict[str, Any]:
        """Return what a record says of the defense, as plain JSON types."""
        return {
            "name": self.name,
            "settings": self.settings,
            "batch_dependent": self.batch_dependent,
            "stateful": self.stateful,
            "randomized": self.randomized,
        }

    def unwrap(self) -> nn.Module:
        """Return the model, which is as it was handed in."""
        return self.classifier.unwrap()

    def extra_repr(self) -> str:
        """Show the settings."""
        return ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
