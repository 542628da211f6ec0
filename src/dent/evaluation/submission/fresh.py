"""Make fresh copies of a defense, which have answered no query.

A defense may remember its queries: by a bug, by design, or to fool the evaluation. So every result
comes from a copy that was made before the first query. If a copy that has answered queries differs
from a fresh one, a diagnostic is raised.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from dent.adaptation.random_state import get_state, kept_generators, reachable, seed_one
from dent.attacks import Defense, DynamicDefense, answer
from dent.evaluation.records.plan import seed_of
from dent.evaluation.submission.known_seed import KnownSeed, RandomState, random_state_of
from dent.support.deep_copy import deep_copy

Surrogates = Mapping[str, nn.Module]

_ATOMS: Final = (str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device)


@dataclass(frozen=True)
class Instance:
    """One copy of a defense.

    Attributes:
        defense: The copy.
        model: The copy's own copy of the static model, if it holds one.
        generators: The random number generators that the copy keeps.
        writes: PyTorch's counts of writes to `model` when the copy was made.
    """

    defense: Defense
    model: nn.Module | None
    generators: tuple[Any, ...]
    writes: tuple[int, ...] = ()

    def reseed(self, seed: int) -> None:
        """Seed every generator that the copy keeps, but not torch's global ones."""
        for index, generator in enumerate(self.generators):
            seed_one(generator, seed_of(seed, "generator", index))

    def wrote(self) -> bool:
        """Return whether the copy wrote to its static model, as far as PyTorch counts writes."""
        return self.model is not None and self.writes != _writes(self.model)

    def drawn(self) -> tuple[object, ...]:
        """Return a value that changes whenever one of the kept generators draws."""
        return states_of(self.generators)


class Origin:
    """A defense as it was before its first query.

    Args:
        defense: The defense. This class never queries it if it can be copied.
        model: The static model, to find its copy in each copy of the defense.

    Attributes:
        missing: Why the defense cannot be copied; None if it can. A defense that cannot be copied
            is queried directly, after `reset()`.
    """

    def __init__(self, defense: Defense, model: nn.Module | None = None) -> None:
        self._defense, self._model = defense, model
        self._generators = tuple(kept_generators(defense, everywhere=True))
        self.missing: str | None = None
        memo: dict[int, Any] = {}
        try:
            self._defense = deep_copy(defense, memo)
        except Exception as error:  # a user's class may raise anything
            self.missing = f"{type(defense).__name__} cannot be copied: {error}"
            return
        self._model = memo.get(id(model))
        self._generators = tuple(
            memo.get(id(generator), generator) for generator in self._generators
        )

    @property
    def defense(self) -> Defense:
        """The original. It may be inspected, but not queried."""
        return self._defense

    def new(self, seed: int | None = None) -> Instance:
        """Return a fresh copy, or the defense itself if it cannot be copied.

        Args:
            seed: Seed of the generators that the copy keeps; None leaves them as they are.
        """
        if self.missing is not None:
            instance = Instance(self._defense, None, self._generators)
            reset(self._defense)
        else:
            memo: dict[int, Any] = {}
            defense = deep_copy(self._defense, memo)
            generators = tuple(memo.get(id(generator), generator) for generator in self._generators)
            model = memo.get(id(self._model))
            instance = Instance(defense, model, generators, () if model is None else _writes(model))
        if seed is not None:
            instance.reseed(seed)
        return instance


class _Queries:
    """A source of fresh copies with seeded generators, one copy for each query.

    If the attacker knows the seed of the submission, all copies get this seed. Otherwise each copy
    gets another one.
    """

    def __init__(
        self, origin: Origin, seed: int, surrogates: Surrogates, known: KnownSeed | None = None
    ) -> None:
        self.origin, self.seed, self.surrogates, self.count = origin, seed, surrogates, 0
        self.known = known

    def over(self, origin: Origin) -> "_Queries":
        return _Queries(origin, self.seed, self.surrogates, self.known)

    def new(self) -> Instance:
        self.count += 1
        known = self.known
        seed = seed_of(self.seed, "query", self.count) if known is None else known.seed
        return self.origin.new(seed)

    def answer(self, x: Tensor) -> Tensor:
        instance = self.new()
        with self.begun(instance, x):
            return answer(instance.defense, x)

    def begun(self, instance: Instance, x: Tensor) -> AbstractContextManager[None]:
        if self.known is None:
            return nullcontext()
        return self.known.begun(instance.defense, x.device)


class _Adapted(NamedTuple):
    instance: Instance
    adaptation: Any
    state: RandomState | None
    """Random state after the adaptation; None unless the attacker knows the seed."""


class FreshDefense:
    """A dynamic defense that answers each query with a fresh copy.

    Beyond `adapt` and `predict`, attackers can inspect the defense (`inner`), pass optional
    arguments to its `adapt`, and transfer from other models (`surrogates`).
    """

    def __init__(self, queries: _Queries) -> None:
        self._queries = queries

    @property
    def inner(self) -> Any:
        """The original defense. It may be inspected, but not queried."""
        return self._queries.origin.defense

    @property
    def batch_dependent(self) -> bool:
        """Whether the defense declares that it is batch-dependent."""
        return bool(self.inner.batch_dependent)

    @property
    def drew(self) -> bool:
        """Whether a query under a known seed used global generators, which it then restored."""
        return self._queries.known is not None and self._queries.known.drew

    def over(self, defense: DynamicDefense) -> "FreshDefense":
        """Return another defense, wrapped in the same way."""
        return FreshDefense(self._queries.over(Origin(defense)))

    def surrogates(self) -> Surrogates:
        """Return the other models to transfer from, by name."""
        return self._queries.surrogates

    def adapt(self, x: Tensor, **how: Any) -> _Adapted:
        """Adapt a fresh copy. The same copy predicts with the result."""
        instance = self._queries.new()
        defense: Any = instance.defense
        with self._queries.begun(instance, x):
            adaptation = defense.adapt(x, **how)
            known = self._queries.known is not None
            state = random_state_of(instance.generators, x.device) if known else None
        return _Adapted(instance, adaptation, state)

    def predict(self, x: Tensor, adaptation: _Adapted) -> Tensor:
        """Return the logits (N, classes) of the copy that adapted."""
        instance, adapted, state = adaptation
        defense: Any = instance.defense
        known = self._queries.known
        resumed: AbstractContextManager[None] = nullcontext()
        if known is not None and state is not None:
            resumed = known.resumed(instance.generators, x.device, state)
        with resumed:
            logits: Tensor = defense.predict(x, adapted)
        return logits

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits of a fresh copy for a batch, as `dent.attacks.answer` gets them."""
        return self._queries.answer(x)


class FreshModule(nn.Module):
    """A plain module that answers each query with a fresh copy."""

    def __init__(self, queries: _Queries) -> None:
        super().__init__()
        object.__setattr__(self, "_queries", queries)  # not a submodule
        self.eval()

    @property
    def inner(self) -> Any:
        """The original module. It may be inspected, but not queried."""
        return self._asked.origin.defense

    @property
    def answers_as(self) -> Any:
        """The module whose predictions these are, for a description."""
        return self.inner

    @property
    def drew(self) -> bool:
        """Whether a query under a known seed used global generators, which it then restored."""
        return self._asked.known is not None and self._asked.known.drew

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a fresh copy for a batch."""
        return self._asked.answer(x)

    def surrogates(self) -> Surrogates:
        """Return the other models to transfer from, by name."""
        return self._asked.surrogates

    def __getattr__(self, name: str) -> Any:
        """Explain why there is no `adapt` or `predict` if an attack expects them."""
        if name in ("adapt", "predict"):
            raise AttributeError(
                f"the model has no {name}: the static model is a plain module without adapt and "
                "predict, and an attack also runs on it. Use target(x) there",
                name=name,
                obj=self,
            )
        return super().__getattr__(name)

    @property
    def _asked(self) -> _Queries:
        queries: _Queries = object.__getattribute__(self, "_queries")
        return queries


def fresh(
    origin: Origin,
    seed: int,
    surrogates: Surrogates | None = None,
    *,
    known: int | None = None,
) -> Defense:
    """Return a defense for an attack to query: each query goes to a fresh copy.

    Args:
        origin: The defense before its first query.
        seed: Seed of the generators that the defense keeps.
        surrogates: Other models to transfer from, by name.
        known: The seed of the submission, if the attacker knows it. Every query then draws the
            same random numbers as the submission. None if the attacker does not know it.
    """
    if origin.missing is not None and known is None:
        return origin.new(seed).defense
    known_seed = None if known is None else KnownSeed(known)
    queries = _Queries(origin, seed, surrogates or {}, known_seed)
    if isinstance(origin.defense, DynamicDefense):
        return FreshDefense(queries)
    return FreshModule(queries)


def reset(defense: Defense) -> None:
    """Call `reset()` if the defense has it, to forget what it keeps between batches."""
    forget = getattr(defense, "reset", None)
    if callable(forget):
        forget()


def footprint(root: object) -> int:
    """Return a number that changes if anything that an object holds changes, except generators.

    For tensors, it depends on PyTorch's count of writes, not on their values.
    """
    marks = []
    for part in reachable(root, values=True):
        if isinstance(part, Tensor):
            version = 0 if part.is_inference() else part._version
            marks.append(hash((id(part), version)))
        elif isinstance(part, _ATOMS):
            marks.append(hash(part))
        else:
            marks.append(hash(type(part)))
    return hash(tuple(marks))


def _writes(model: nn.Module) -> tuple[int, ...]:
    tensors = (*model.parameters(), *model.buffers())
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)


def states_of(generators: Iterable[Any]) -> tuple[object, ...]:
    """Return a value that changes whenever one of several generators draws."""
    states = map(get_state, generators)
    return tuple(
        state.numpy().tobytes() if isinstance(state, Tensor) else str(state) for state in states
    )
