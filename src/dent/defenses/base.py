"""The base class of the reference defenses."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from dent.config import DentConfig
from dent.defenses.batch_check import check_batch, refuse_recording
from dent.defenses.dent import Dent
from dent.errors import InputError, UnsupportedModelError

STATIC = DentConfig(steps=0)
"""The static model: no steps, train statistics, no smoothing."""


class ReferenceDefense(nn.Module, ABC):
    """A defense that first calls `adapt` on a batch, then `predict`.

    Subclasses implement `adapt`, `predict`, `settings` and `batch_dependent`, and set `name`. They
    run the model only through `classifier` or through their own copies, so the model always runs in
    eval mode and is never written to.

    Args:
        model: takes a batch (N, ...) and returns logits (N, classes). It is not changed.
        config: the configuration in which `classifier` runs the model; by default the static model.

    Attributes:
        name: the name of the defense in records.
        classifier: the model to call: in eval mode, never written to, with gradient to the input.

    Raises:
        UnsupportedModelError: the model cannot run in this configuration.
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
        """The settings that determine the predictions, as plain JSON types."""

    @abstractmethod
    def adapt(self, x: Tensor, *, differentiable: bool = False) -> Any:
        """Adapt to a batch.

        Args:
            x: (N, ...) of floats. Rows with NaN or infinity are left out.
            differentiable: keep the graph to `x`, so that predictions with the result have their
                exact gradient. Otherwise autograd treats the result as a constant.

        Returns:
            The adaptation, for `predict`.
        """

    @abstractmethod
    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        """Return logits (N, classes) for `x` under an adaptation, with gradient to `x`.

        Rows whose input is not finite get NaN logits.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Return `predict(x, adapt(x))`. Subclasses must not override this."""
        return self.predict(x, self.adapt(x))

    @final
    def describe(self) -> dict[str, Any]:
        """Return the description for records, as plain JSON types.

        Raises:
            UnsupportedModelError: The class has no `name`.
        """
        kind = type(self)
        if not isinstance(getattr(self, "name", None), str):
            raise UnsupportedModelError(
                f"the defense {kind.__qualname__} has no name: add a line such as "
                f"`name = {kind.__name__.lower()!r}` to the class"
            )
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


def finite_rows(x: Tensor, name: str) -> Tensor:
    """Return which samples of a batch are finite, (N,) bool. A defense adapts only to these.

    Args:
        x: the batch (N, ...).
        name: of the defense.

    Raises:
        ExportError: a static graph is being recorded.
        InputError: `x` is not a dense batch (N, ...) of at least one sample of floating-point
            numbers, or the defense runs within a transform of torch.func.
    """
    refuse_recording(name)
    check_batch(x, name)
    with torch.inference_mode(False):
        return x.detach().flatten(1).isfinite().all(1)


def check_adaptation(adaptation: object, kind: type, name: str) -> None:
    """Check that an adaptation is of the kind that a defense returns.

    Raises:
        InputError: it is not.
    """
    if not isinstance(adaptation, kind):
        raise InputError(
            f"{name} expected a {kind.__name__}, got {type(adaptation).__name__}: pass what "
            "adapt(x) returned."
        )
