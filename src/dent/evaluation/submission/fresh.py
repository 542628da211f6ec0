"""Copies of a defense that have answered nothing yet.

A defense may remember what it was asked: by a bug, by design, or to fool whoever evaluates it. So
everything that counts is asked of a copy made before the first question, and a difference between
such a copy and one that has answered before is a finding.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from dent.adaptation.random_state import get_state, kept_generators, reachable, seed_one
from dent.attacks import Defense, DynamicDefense, answer
from dent.evaluation.records.plan import seed_of

Surrogates = Mapping[str, nn.Module]

_ATOMS: Final = (str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device)


@dataclass(frozen=True)
class Instance:
    """One copy of a defense.

    Attributes:
        defense: The copy.
        model: The copy's own copy of the static model, if it holds one.
        generators: The generators that it keeps.
        writes: PyTorch's counts of writes to `model`, when the copy was made.
    """

    defense: Defense
    model: nn.Module | None
    generators: tuple[Any, ...]
    writes: tuple[int, ...] = ()

    def reseed(self, seed: int) -> None:
        """Seed every generator that the copy keeps; torch's global ones are the caller's."""
        for index, generator in enumerate(self.generators):
            seed_one(generator, seed_of(seed, "generator", index))

    def wrote(self) -> bool:
        """Whether the copy wrote to its static model, as far as PyTorch counts that."""
        return self.model is not None and self.writes != _writes(self.model)

    def drawn(self) -> tuple[object, ...]:
        """A value that changes whenever one of the kept generators draws."""
        return states_of(self.generators)

    def forget(self) -> None:
        """Let a defense that keeps something between batches forget it, if it offers `reset()`."""
        reset = getattr(self.defense, "reset", None)
        if callable(reset):
            reset()


class Origin:
    """A defense as it was before anybody asked it anything.

    Args:
        defense: Never asked anything by this class, if it can be copied.
        model: The static model, to find its copy in each copy of the defense.

    Attributes:
        missing: Why it cannot be copied; None where it can. Then every instance is the defense
            itself, after `reset()`.
    """

    def __init__(self, defense: Defense, model: nn.Module | None = None) -> None:
        self._defense, self._model = defense, model
        self._generators = tuple(kept_generators(defense, everywhere=True))
        self.missing: str | None = None
        memo: dict[int, Any] = {}
        try:
            self._defense = copy.deepcopy(defense, memo)
        except Exception as error:  # whatever a class of somebody else raises
            self.missing = f"{type(defense).__name__} cannot be copied: {error}"
            return
        self._model = memo.get(id(model))
        self._generators = tuple(memo.get(id(each), each) for each in self._generators)

    @property
    def defense(self) -> Defense:
        """The kept original, to look at and not to ask."""
        return self._defense

    def new(self, seed: int | None = None) -> Instance:
        """Return a copy that has answered nothing.

        Args:
            seed: What the generators that it keeps are seeded with; None leaves them as they are.
        """
        if self.missing is not None:
            made = Instance(self._defense, None, self._generators)
            made.forget()
        else:
            memo: dict[int, Any] = {}
            defense = copy.deepcopy(self._defense, memo)
            generators = tuple(memo.get(id(each), each) for each in self._generators)
            model = memo.get(id(self._model))
            made = Instance(defense, model, generators, () if model is None else _writes(model))
        if seed is not None:
            made.reseed(seed)
        return made


class _Queries:
    """Seeds for the generators of one copy after the other."""

    def __init__(self, origin: Origin, seed: int, surrogates: Surrogates) -> None:
        self.origin, self.seed, self.surrogates, self.count = origin, seed, surrogates, 0

    def new(self) -> Instance:
        self.count += 1
        return self.origin.new(seed_of(self.seed, "query", self.count))


class FreshDefense:
    """A dynamic defense, every question to which meets a copy that has answered nothing.

    What it offers attackers beyond the protocol is what the defense offers (`View`).
    """

    def __init__(self, origin: Origin, seed: int, surrogates: Surrogates) -> None:
        self._queries = _Queries(origin, seed, surrogates)

    @property
    def inner(self) -> Any:
        """The defense itself, to look at and not to ask."""
        return self._queries.origin.defense

    @property
    def batch_dependent(self) -> bool:
        """As the defense declares."""
        return bool(self.inner.batch_dependent)

    def over(self, defense: DynamicDefense) -> "FreshDefense":
        """Return another defense, asked in the same way."""
        return FreshDefense(Origin(defense), self._queries.seed, self._queries.surrogates)

    def surrogates(self) -> Surrogates:
        """Other models to transfer from."""
        return self._queries.surrogates

    def adapt(self, x: Tensor, **how: Any) -> tuple[Any, Any]:
        """Let a copy adapt; it is this copy that predicts with the result."""
        asked: Any = self._queries.new().defense
        return asked, asked.adapt(x, **how)

    def predict(self, x: Tensor, adaptation: tuple[Any, Any]) -> Tensor:
        """Logits (N, classes) of the copy that adapted."""
        asked, adapted = adaptation
        logits: Tensor = asked.predict(x, adapted)
        return logits

    def __call__(self, x: Tensor) -> Tensor:
        """What a copy says to a batch, as `dent.attacks.answer` asks it."""
        return answer(self._queries.new().defense, x)


class FreshModule(nn.Module):
    """A plain module, every question to which meets a copy that has answered nothing."""

    def __init__(self, origin: Origin, seed: int, surrogates: Surrogates) -> None:
        super().__init__()
        object.__setattr__(self, "_queries", _Queries(origin, seed, surrogates))  # no submodule
        self.eval()

    @property
    def inner(self) -> Any:
        """The module itself, to look at and not to ask."""
        queries: _Queries = object.__getattribute__(self, "_queries")
        return queries.origin.defense

    def forward(self, x: Tensor) -> Tensor:
        """What a copy says to a batch."""
        queries: _Queries = object.__getattribute__(self, "_queries")
        return answer(queries.new().defense, x)

    def surrogates(self) -> Surrogates:
        """Other models to transfer from."""
        queries: _Queries = object.__getattribute__(self, "_queries")
        return queries.surrogates


def fresh(origin: Origin, seed: int, surrogates: Surrogates | None = None) -> Defense:
    """Return a defense as an attack should meet it: at every question as it was before the first.

    Args:
        origin: Of the defense.
        seed: Of what the generators draw that the defense keeps.
        surrogates: Other models to transfer from, by name.
    """
    if origin.missing is not None:
        return origin.new(seed).defense
    if isinstance(origin.defense, DynamicDefense):
        return FreshDefense(origin, seed, surrogates or {})
    return FreshModule(origin, seed, surrogates or {})


def footprint(thing: object) -> int:
    """A number that changes when something that an object keeps does, its generators apart.

    Of tensors PyTorch's own count of writes is looked at, not their values.
    """
    seen = []
    for each in reachable(thing, values=True):
        if isinstance(each, Tensor):
            version = 0 if each.is_inference() else each._version
            seen.append(hash((id(each), version)))
        elif isinstance(each, _ATOMS):
            seen.append(hash(each))
        else:
            seen.append(hash(type(each)))
    return hash(tuple(seen))


def _writes(model: nn.Module) -> tuple[int, ...]:
    tensors = (*model.parameters(), *model.buffers())
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)


def states_of(generators: Iterable[Any]) -> tuple[object, ...]:
    """A value that changes whenever one of several generators draws."""
    states = map(get_state, generators)
    return tuple(
        state.numpy().tobytes() if isinstance(state, Tensor) else str(state) for state in states
    )
