"""Detect a defense that writes into the static model."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from dent.attacks import Defense
from dent.defenses.dent import Dent
from dent.errors import InputError
from dent.evaluation.submission.fresh import Instance
from dent.models.weights import weights_digest


class Guard:
    """A check that a model's weights have not changed.

    A write that PyTorch counts is detected at once, at no cost. A write that it does not count
    (through `.data`) is only detected by a `thorough` check, which reads the weights.

    Args:
        model: The static model.
        weights: Its `weights_digest` before the run.
    """

    def __init__(self, model: nn.Module, weights: str) -> None:
        self._model, self._weights = model, weights
        self._versions = _versions(model)

    def check(self, suspect: str, *, thorough: bool = False) -> None:
        """Check the model after a defense ran.

        Args:
            suspect: The name of the defense that ran.
            thorough: Read the weights even if PyTorch counted no write.

        Raises:
            InputError: The weights have changed.
        """
        versions = _versions(self._model)
        if versions == self._versions and not thorough:
            return
        self._versions = versions
        self._compare(suspect, self._model)

    def check_copy(self, suspect: str, instance: Instance, *, thorough: bool = False) -> None:
        """Check the static model that a copy of a defense holds.

        Raises:
            InputError: The weights have changed.
        """
        if instance.model is not None and (thorough or instance.wrote()):
            self._compare(suspect, instance.model)

    def _compare(self, suspect: str, model: nn.Module) -> None:
        if weights_digest(model) != self._weights:
            raise InputError(
                f"the defense {suspect!r} wrote into the static model it was made from, so the "
                "static reference would no longer be the trained model. Give the defense its own "
                "copy, copy.deepcopy(model). This unit was not recorded"
            )


@contextmanager
def put_back(defense: Defense) -> Iterator[None]:
    """Restore a defense's own weights and buffers, if they changed in queries outside of a run."""
    # Not for a subclass of Dent, which may write to its state dict.
    if not isinstance(defense, nn.Module) or type(defense) is Dent:
        yield
        return
    state = {
        name: value.detach().clone()
        for name, value in defense.state_dict().items()
        if isinstance(value, Tensor)  # the state of a module may be of any type
    }
    try:
        yield
    finally:
        after = defense.state_dict()
        changed = {
            name: was for name, was in state.items() if name in after and not was.equal(after[name])
        }
        with torch.no_grad():
            defense.load_state_dict(changed, strict=False)


def _versions(model: nn.Module) -> tuple[Any, ...]:
    """Return the identity and the count of writes of each tensor of a model."""
    return tuple(
        (id(tensor), None if tensor.is_inference() else tensor._version)
        for tensor in chain(model.parameters(), model.buffers())
    )
