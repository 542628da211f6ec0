"""The largest cost of an attack, counted by running it on a model that is never fooled."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch import Tensor, nn

from dent.attacks.querier import Queries
from dent.errors import ConfigError, DentError, MissingExtraError
from dent.threat import ThreatModel

if TYPE_CHECKING:
    from dent.threat import Norm


class _Attack(Protocol):
    """The part of an attack's interface that is used here."""

    @property
    def name(self) -> str:
        """The name for results."""
        ...

    def __hash__(self) -> int: ...

    def __call__(
        self, defense: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int
    ) -> Any:
        """Attack one batch."""
        ...


_MOST: Final = 100_000
_SIDE: Final = 32


class _Unfoolable(nn.Module):
    """A model that predicts the label of every member, for any images, with a zero gradient."""

    batch_dependent = True

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        super().__init__()
        self._logits = torch.nn.functional.one_hot(labels, num_classes).float()
        self._asked = 0
        self.eval()

    def adapt(self, x: Tensor, *, differentiable: bool = False, last: int | None = None) -> None:
        """Return None, because nothing adapts, so there is nothing to differentiate."""
        del x, differentiable, last

    def unwrap(self) -> nn.Module:
        """Return the model itself."""
        return self

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        """Return the one-hot labels as logits."""
        del adaptation
        self._asked += 1
        if self._asked > _MOST:
            raise ConfigError(f"it makes more than {_MOST} queries if nothing is fooled")
        return self._logits + 0.0 * x.flatten(1).sum(dim=1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return `predict(x, adapt(x))`."""
        return self.predict(x, None)


@lru_cache(maxsize=256)
def count_passes(attack: _Attack, num_classes: int, norm: Norm) -> Queries:
    """Return the passes for one batch of two 32 x 32 images that are never fooled.

    Args:
        attack: The attack.
        num_classes: Number of classes of the defense.
        norm: Norm of the threat model.

    Raises:
        ConfigError: The attack fails on this batch, or makes more than 100,000 queries.
        MissingExtraError: The attack needs a package that is not installed.
    """
    labels = torch.arange(2) % num_classes
    images = torch.full((2, 3, _SIDE, _SIDE), 0.5)
    try:
        result = attack(
            _Unfoolable(labels, num_classes), images, labels, ThreatModel(norm, 0.01), seed=0
        )
    except MissingExtraError:
        raise
    except DentError as error:
        raise _uncountable(attack, str(error)) from error
    except Exception as error:
        raise _uncountable(attack, f"{type(error).__name__}: {error}") from error
    return Queries(result.queries, result.backwards)


def _uncountable(attack: _Attack, why: str) -> ConfigError:
    return ConfigError(
        f"what the attack {attack.name!r} costs cannot be counted by running it on two images of "
        f"{_SIDE} x {_SIDE} that nothing fools ({why}): give its class a method "
        "queries(num_classes, norm) that returns the passes of one batch at most"
    )
