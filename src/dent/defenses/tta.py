"""A wrapper that turns any test-time adaptation method into a defense that keeps state."""

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dent.errors import ConfigError, UnsupportedModelError
from dent.kinds import path_of
from dent.support.straight_through import straight_through


class Answered(NamedTuple):
    """The result of one call of a method."""

    images: Tensor
    """The batch, detached."""
    logits: Tensor
    """The method's logits (N, classes), detached."""
    model: Callable[[Tensor], Tensor]
    """A copy of the method's model, made after the batch."""


class TestTimeAdaptation(nn.Module):
    """A test-time adaptation method, such as the published code of tent, EATA, SAR or CoTTA.

    The method is a module. Its `forward(x)` predicts a batch and changes its own state, and its
    `reset()` returns to the initial state. Every `adapt` (and so every call) changes the state,
    including an attacker's queries, as in the method itself. `snapshot` saves the state and
    `restore` returns to it, so the queries of an evaluation's attacks need not affect the stream.

    The logits are exactly the method's. Their gradient is the gradient of the method's `model`
    after the batch, at the same images, because methods free their own graph when they take their
    step. So gradient attacks use a substitute here, as in BPDA.

    The method is copied and keeps its modes (tent predicts in training mode): `eval()` and
    `train()` on this wrapper have no effect. It is not thread-safe.

    Args:
        method: Has `forward(x)`, `reset()`, and `model`, the classifier that it adapts.
        model: The static classifier before the method changed it, in eval mode. It must not be the
            same object as the method's model. It is not changed.
        settings: The method's own settings for records, such as `{"lr": 0.001}`, as plain JSON
            types. Records take nothing else from the method but its class. So a run with other
            settings counts as the same run, and resumes it, unless both are given here.

    Raises:
        ConfigError: `settings` is no dict of plain JSON types.
        UnsupportedModelError: The method lacks one of these or cannot be copied, or `model` is no
            module or in training mode.
    """

    __test__: ClassVar[bool] = False  # otherwise pytest collects the class, because of its name
    name: ClassVar[str] = "test-time-adaptation"

    def __init__(
        self,
        method: nn.Module,
        model: nn.Module,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        parts = ("forward", "reset", "model")
        missing = [part for part in parts if not callable(getattr(method, part, None))]
        if missing:
            raise UnsupportedModelError(
                "TestTimeAdaptation expects a torch.nn.Module with forward(x), reset() and the "
                f"classifier that it adapts as `model`, got {type(method).__name__} without "
                f"{', '.join(missing)}."
            )
        if not isinstance(model, nn.Module):
            raise UnsupportedModelError(
                "TestTimeAdaptation expects the static classifier, a torch.nn.Module, got "
                f"{type(model).__name__}."
            )
        if any(module.training for module in model.modules()):
            raise UnsupportedModelError(
                "TestTimeAdaptation expects the static classifier in eval mode: give it a copy "
                "from before the method was set up, such as copy.deepcopy(model).eval()."
            )
        self._kind = path_of(method)
        self._settings = None if settings is None else _plain(settings)
        self.base = model
        self.method: Any = _copied(method)

    @property
    def batch_dependent(self) -> bool:
        """True: these methods adapt to the whole batch."""
        return True

    @property
    def stateful(self) -> bool:
        """True: the state carries over from batch to batch."""
        return True

    def describe(self) -> dict[str, Any]:
        """Return the description of the defense for records."""
        own = {} if self._settings is None else {"settings": self._settings}
        return {
            "name": self.name,
            "settings": {"method": self._kind, **own},
            "batch_dependent": True,
            "stateful": True,
            "randomized": False,
        }

    def unwrap(self) -> nn.Module:
        """Return the static classifier."""
        return self.base

    def reset(self) -> None:
        """Reset the method to its initial state."""
        self.method.reset()

    def snapshot(self) -> nn.Module:
        """Return the state, for `restore`: a copy of the method."""
        state: nn.Module = _copied(self.method)
        return state

    def restore(self, state: nn.Module) -> None:
        """Return to a state from `snapshot`."""
        self.method = _copied(state)

    def train(self, mode: bool = True) -> "TestTimeAdaptation":
        """Change nothing: the method keeps its own modes."""
        del mode
        return self

    def adapt(self, x: Tensor) -> Answered:
        """Call the method on a batch (N, ...), which changes its state."""
        images = x.detach().clone()
        with torch.inference_mode(mode=False), torch.enable_grad():
            logits: Tensor = self.method(images.clone())
        return Answered(images, logits.detach(), _copied(self.method.model))

    def predict(self, x: Tensor, adaptation: Answered) -> Tensor:
        """Return the method's logits for the batch of the adaptation, with a gradient to `x`.

        For other images, return the logits of its model after that batch, without another step.
        """
        if x.shape != adaptation.images.shape or not torch.equal(x.detach(), adaptation.images):
            return adaptation.model(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return adaptation.logits
        logits = adaptation.model(x)
        return straight_through(adaptation.logits, logits)

    def forward(self, x: Tensor) -> Tensor:
        """Return `predict(x, adapt(x))`."""
        return self.predict(x, self.adapt(x))


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(settings), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "TestTimeAdaptation takes settings as a dict of plain JSON types, such as "
            f'{{"lr": 0.001}}, got {settings!r}: {error}.'
        ) from error
    return plain


def _copied(method: Any) -> Any:
    try:
        return copy.deepcopy(method)
    except Exception as error:  # the user's method may raise anything
        raise UnsupportedModelError(
            f"{type(method).__name__} cannot be copied ({error}), so an attack could not query it "
            "without a change of its state."
        ) from error
