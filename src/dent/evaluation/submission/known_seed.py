"""Queries under the seed of the submission, for an attacker who knows it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from dent.adaptation.random_state import (
    get_state,
    global_draws,
    seeded_generators,
    set_state,
    shared_states,
)
from dent.attacks import Defense
from dent.attacks.base import isolated_random_state

RandomState = tuple[tuple[Callable[[Any], object], Any], ...]
"""For each generator, a function that restores it, and the state to restore."""


class KnownSeed:
    """Random numbers for queries, the same as `submission.submit` gives the submission.

    Attributes:
        seed: Seed of the submission.
        drew: Whether any query so far drew from the process's global generators. Every query
            restores them, so nothing else shows it.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.drew = False

    @contextmanager
    def begun(self, defense: Defense, device: torch.device) -> Iterator[None]:
        """Draw the random numbers of the submission, from its start, within this context."""
        with isolated_random_state(self.seed, device), seeded_generators(defense, self.seed):
            before = global_draws(device)
            yield
            self.drew = self.drew or before != global_draws(device)

    @contextmanager
    def resumed(
        self, generators: Sequence[Any], device: torch.device, state: RandomState
    ) -> Iterator[None]:
        """Continue the random numbers from a state within this context."""
        own = [(generator, get_state(generator)) for generator in generators]
        with isolated_random_state(self.seed, device):
            for put_back, where in state:
                put_back(where)
            before = global_draws(device)
            try:
                yield
            finally:
                self.drew = self.drew or before != global_draws(device)
                for generator, where in own:
                    set_state(generator, where)


def random_state_of(generators: Sequence[Any], device: torch.device) -> RandomState:
    """Return the state of the global generators and of the generators that a defense keeps."""
    kept = [(partial(set_state, generator), get_state(generator)) for generator in generators]
    return (*shared_states(device), *kept)
