"""The base class of the reference defenses."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from dent.config import DentConfig
from dent.defenses.dent import Dent
from dent.errors import InputError, UnsupportedModelError

STATIC = DentConfig(steps=0)
"""No steps, train statistics, no smoothing: the model itself."""


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
        """Whether a prediction can depend on the other members of the batch."""

    @property
    def stateful(self) -> bool:
        """Whether a prediction can depend on earlier batches."""
        return False

    @property
    def randomized(self) -> bool:
        """Whether the same batch can get different predictions."""
        return False

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All other settings that determine the predictions, as plain JSON types."""

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
        """Return the description for records, as plain JSON types."""
        return {
            "name": self.name,
            "settings": self.settings,
            "batch_dependent": self.batch_dependent,
            "stateful": self.stateful,
            "randomized": self.randomized,
        }

    def unwrap(self) -> nn.Module:
        """Return the model, unchanged."""
        return self.classifier.unwrap()

    def extra_repr(self) -> str:
        """Show the settings."""
        return ", ".join(f"{key}={value!r}" for key, value in self.settings.items())


def finite_rows(x: Tensor) -> Tensor:
    """Return which samples of a batch are finite, (N,) bool: only those are adapted to.

    Raises:
        InputError: `x` is not a batch (N, ...) of at least one sample of floating-point numbers.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"A defense expected a torch.Tensor, got {type(x).__name__}.")
    if not x.is_floating_point() or x.dim() < 2 or x.numel() == 0:
        raise InputError(
            "A defense expected a batch of floating-point numbers, shape (N, ...) with N at least "
            f"1, got {x.dtype} of shape {tuple(x.shape)}: for images, pass x.float() / 255; for "
            "one sample, x.unsqueeze(0)."
        )
    with torch.inference_mode(False):
        return x.detach().flatten(1).isfinite().all(1)


def gradient(objective: Tensor, of: Tensor, *, keep_graph: bool = False) -> Tensor:
    """Return the gradient of a scalar, without writing to any `.grad`.

    Args:
        objective: () scalar.
        of: what to differentiate by, any shape.
        keep_graph: make the gradient itself differentiable.

    Raises:
        UnsupportedModelError: the model between the two cuts the graph.
    """
    if not objective.requires_grad:
        raise UnsupportedModelError(
            "The model's output does not depend differentiably on what is optimized: does its "
            "forward use torch.no_grad(), detach() or NumPy?"
        )
    (derivative,) = torch.autograd.grad(
        objective, [of], create_graph=keep_graph, materialize_grads=True
    )
    return derivative
