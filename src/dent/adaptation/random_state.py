"""Generators of random numbers that a model keeps as attributes.

A generator is a `torch.Generator`, NumPy's `Generator` or `RandomState`, or a `random.Random`. The
functions here find those that a model holds, and set them.
"""

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType, NoneType
from typing import Any, Final

import torch
from torch import Tensor, nn

from dent.adaptation.untraced import untraced

_DEPTH: Final = 3
"""How many containers deep a generator is looked for."""


@untraced
def kept_generators(model: nn.Module) -> list[Any]:
    """Return every generator that a module of the model holds, once.

    Those in its containers are among them, and those in plain objects that it holds.
    """
    kinds, seen, found = _kinds(), set[int](), list[Any]()
    for module in model.modules():
        for name, value in vars(module).items():
            # PyTorch's own registers hold tensors, modules and hooks.
            if name not in _REGISTERS:
                found += _within(value, kinds, seen, _DEPTH)
    return found


def copied(generator: Any) -> Any:
    """Return a generator of its own that goes on from the same state."""
    if isinstance(generator, torch.Generator):
        new = torch.Generator(generator.device)
        new.set_state(generator.get_state())
        return new
    state = get_state(generator)
    if isinstance(generator, random.Random):
        own = generator.__class__()
        own.setstate(state)
        return own
    numpy = sys.modules["numpy"]
    if isinstance(generator, numpy.random.RandomState):
        own = numpy.random.RandomState()
        own.set_state(state)
        return own
    bits = type(generator.bit_generator)()
    bits.state = state
    return numpy.random.Generator(bits)


def get_state(generator: Any) -> Any:
    """Return where a generator is in its sequence."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    bits = getattr(generator, "bit_generator", None)  # NumPy's newer kind
    return generator.get_state() if bits is None else bits.state


def set_state(generator: Any, state: Any) -> None:
    """Put a generator back to where it was."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


@contextmanager
def seeded_generators(model: object, seed: int) -> Iterator[None]:
    """Within this context the generators that a model keeps follow from a seed.

    After it they are where they were before.

    Args:
        model: any module; anything else has no generators.
        seed: from 0 to 2**63 - 1.
    """
    kept = kept_generators(model) if isinstance(model, nn.Module) else []
    before = [get_state(generator) for generator in kept]
    for number, generator in enumerate(kept):
        seed_one(generator, seed + number)
    try:
        yield
    finally:
        for generator, state in zip(kept, before, strict=True):
            set_state(generator, state)


@contextmanager
def same_random_numbers(model: nn.Module, device: torch.device) -> Iterator[Callable[[], None]]:
    """Yield a function that puts all random numbers back to where they are now; at last, too.

    All are: the generators that `model` keeps, and those of torch, NumPy and Python that the whole
    process shares.
    """
    kept = [(generator, get_state(generator)) for generator in kept_generators(model)]
    shared = _shared_states(device)

    def restore() -> None:
        for generator, state in kept:
            set_state(generator, state)
        for put_back, state in shared:
            put_back(state)

    try:
        yield restore
    finally:
        restore()


def _shared_states(device: torch.device) -> list[tuple[Callable[[Any], object], Any]]:
    states: list[tuple[Callable[[Any], object], Any]] = [
        (torch.set_rng_state, torch.get_rng_state()),
        (random.setstate, random.getstate()),
    ]
    if device.type == "cuda":

        def put_back(state: Tensor) -> None:
            torch.cuda.set_rng_state(state, device)

        states.append((put_back, torch.cuda.get_rng_state(device)))
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        states.append((numpy.random.set_state, numpy.random.get_state()))
    return states


def seed_one(generator: Any, seed: int) -> None:
    """Seed a generator.

    Args:
        generator: any of the kinds named above.
        seed: from 0 to 2**63 - 1.
    """
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, random.Random):
        generator.seed(seed)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    else:
        generator.seed(seed % 2**32)


def _kinds() -> tuple[type, ...]:
    # Not imported: a model that keeps one of NumPy's has imported it.
    numpy = sys.modules.get("numpy")
    own = () if numpy is None else (numpy.random.Generator, numpy.random.RandomState)
    return (torch.Generator, random.Random, *own)


_REGISTERS: Final = frozenset(vars(nn.Module()))
_ATOMS: Final = frozenset({NoneType, bool, int, float, str, bytes, torch.dtype, torch.device})
_NOT_ENTERED: Final = (Tensor, nn.Module, type, ModuleType)  # modules are visited by themselves


def _within(
    value: object,
    kinds: tuple[type, ...],
    seen: set[int],
    depth: int,
    inside_object: bool = False,
) -> Iterator[Any]:
    if type(value) in _ATOMS or id(value) in seen:
        return
    if isinstance(value, kinds):
        seen.add(id(value))
        yield value
    elif isinstance(value, Mapping | list | tuple | set):
        if depth and value:
            seen.add(id(value))
            for each in value.values() if isinstance(value, Mapping) else value:
                yield from _within(each, kinds, seen, depth - 1, inside_object)
    elif not inside_object and not isinstance(value, _NOT_ENTERED) and hasattr(value, "__dict__"):
        seen.add(id(value))
        for each in vars(value).values():
            yield from _within(each, kinds, seen, depth, True)
