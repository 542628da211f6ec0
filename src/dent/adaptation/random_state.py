"""Random number generators that a model keeps as attributes.

A generator is a `torch.Generator`, NumPy's `Generator` or `RandomState`, or a `random.Random`. The
functions here find the generators of a model, and read and set their states.
"""

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from math import inf
from types import FunctionType, MethodType, ModuleType, NoneType
from typing import Any, Final
from weakref import CallableProxyType, ProxyType

import torch
from torch import Tensor, nn

from dent.adaptation.untraced import untraced
from dent.support.devices import own_generator, random_state, set_random_state

_ATOMS: Final = frozenset(
    {NoneType, bool, int, float, complex, str, bytes, torch.dtype, torch.device, type}
)
_CALLABLES: Final = (FunctionType, MethodType, partial)
_CONTAINERS: Final = (dict, list, tuple, set, frozenset, deque, Mapping, *_CALLABLES)
_NOT_ENTERED: Final = (Tensor, torch.Generator, random.Random, type, ModuleType)
_PROXIES: Final = frozenset({ProxyType, CallableProxyType})  # their referent may be gone
_REGISTERS: Final = tuple(vars(nn.Module()))
_OF_PYTORCH: Final = frozenset(_REGISTERS)
_NO_TENSORS: Final = tuple(name for name in _REGISTERS if name not in {"_parameters", "_buffers"})
_DEPTH: Final = 3
"""Depth of nested containers that each call searches for generators."""


@untraced
def kept_generators(thing: object, *, everywhere: bool = False) -> list[Any]:
    """Return every generator that a model or another object keeps, each once.

    This includes generators in its containers and in plain objects that it holds.

    Args:
        thing: the object to search. All submodules of a module are searched.
        everywhere: search at any depth. Otherwise search three nested containers and one plain
            object deep, which takes no noticeable part of a call.
    """
    kinds = _kinds()
    limits = () if everywhere else (_DEPTH, 1)
    return [item for item in reachable(thing, *limits) if isinstance(item, kinds)]


def reachable(
    thing: object,
    containers: float = inf,
    objects: float = inf,
    *,
    values: bool = False,
    visited: dict[int, object] | None = None,
    closed: Callable[[type], bool] | None = None,
) -> Iterator[object]:
    """Yield an object and everything it holds, each once, in the same order for equal objects.

    Args:
        thing: the object at which the traversal starts.
        containers: number of nested containers that are entered: lists, dictionaries, functions
            with their closures, and so on.
        objects: number of nested plain objects that are entered. Modules are always entered, and
            both numbers start again in them.
        values: also yield numbers, text and the like, and modules' parameters and buffers.
        visited: objects by id that an earlier traversal visited, to which this one adds its own.
        closed: returns True for a class whose objects are not entered.
    """
    # `visited` holds references, so that no id is reused.
    visited = {} if visited is None else visited
    pending = [(thing, containers, objects)]
    while pending:
        current, deep, inside = pending.pop()
        kind = type(current)
        if kind in _ATOMS:
            yield current
            continue
        if id(current) in visited or kind in _PROXIES:
            continue
        visited[id(current)] = current
        yield current
        if closed is not None and closed(kind):
            continue
        if issubclass(kind, nn.Module):
            contents, deep, inside = _of_module(current, values=values), containers, objects
        elif issubclass(kind, _CONTAINERS):
            contents, deep = _of_container(current), deep - 1
        else:
            contents, inside = _of_object(current, kind), inside - 1
        if deep >= 0 and inside >= 0:
            members = (
                contents
                if values
                else (member for member in contents if type(member) not in _ATOMS)
            )
            pending += reversed([(member, deep, inside) for member in members])


def _of_module(module: Any, *, values: bool) -> list[Any]:
    """Return a module's own attributes, then PyTorch's dictionaries, with its children last."""
    attributes = vars(module)
    contents = [value for name, value in attributes.items() if name not in _OF_PYTORCH]
    registers = _REGISTERS if values else _NO_TENSORS
    return contents + [value for name in registers if (value := attributes.get(name))]


def _of_container(container: Any) -> list[Any]:
    if isinstance(container, FunctionType):
        return [cell.cell_contents for cell in container.__closure__ or () if _filled(cell)]
    if isinstance(container, MethodType):
        return [container.__self__, container.__func__]
    if isinstance(container, partial):
        return [container.func, container.args, container.keywords]
    return (
        [*container.keys(), *container.values()]
        if isinstance(container, Mapping)
        else list(container)
    )


def _of_object(instance: Any, kind: type) -> list[Any]:
    if issubclass(kind, _NOT_ENTERED):
        return []
    contents = list(getattr(instance, "__dict__", {}).values())
    return contents + [getattr(instance, name) for name in _slots(kind) if hasattr(instance, name)]  # type: ignore[arg-type] # classes are hashable


@cache
def _slots(kind: type) -> tuple[str, ...]:
    declared = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    return tuple(name for names in declared for name in ((names,) if type(names) is str else names))


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (an empty cell raises)
    except ValueError:
        return False
    return True


def copied(generator: Any) -> Any:
    """Return a separate generator that starts in the same state."""
    if isinstance(generator, torch.Generator):
        new = torch.Generator(generator.device)
        new.set_state(generator.get_state())
        return new
    state = get_state(generator)
    if isinstance(generator, random.Random):
        duplicate = generator.__class__()
        duplicate.setstate(state)
        return duplicate
    numpy = sys.modules["numpy"]
    if isinstance(generator, numpy.random.RandomState):
        duplicate = numpy.random.RandomState()
        duplicate.set_state(state)
        return duplicate
    bits = type(generator.bit_generator)()
    bits.state = state
    return numpy.random.Generator(bits)


def get_state(generator: Any) -> Any:
    """Return the state of a generator."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    bits = getattr(generator, "bit_generator", None)  # NumPy's newer kind
    return generator.get_state() if bits is None else bits.state


def set_state(generator: Any, state: Any) -> None:
    """Put a generator into a state that `get_state` returned."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


@contextmanager
def seeded_generators(model: object, seed: int) -> Iterator[None]:
    """Seed the generators that a model keeps, and restore their states on exit.

    Args:
        model: any module; in any other object no generators are searched for.
        seed: from 0 to 2**63 - 1.
    """
    generators = kept_generators(model) if isinstance(model, nn.Module) else []
    states = [get_state(generator) for generator in generators]
    for number, generator in enumerate(generators):
        seed_one(generator, seed + number)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            set_state(generator, state)


@contextmanager
def same_random_numbers(model: nn.Module, device: torch.device) -> Iterator[Callable[[], None]]:
    """Yield a function that restores all current random states, and restore them on exit.

    These are the states of the generators that `model` keeps, and of the generators of torch (CPU
    and CUDA), NumPy and Python that the whole process shares.
    """
    saved = [(generator, get_state(generator)) for generator in kept_generators(model)]
    shared = shared_states(device)

    def restore() -> None:
        for generator, state in saved:
            set_state(generator, state)
        for put_back, state in shared:
            put_back(state)

    try:
        yield restore
    finally:
        restore()


@untraced
def shared_states(device: torch.device) -> list[tuple[Callable[[Any], object], Any]]:
    """Return the state of each generator that the process shares, after its setter.

    Torch's generators for the CPU and for `device`, if that has one of its own, are included.
    """
    states: list[tuple[Callable[[Any], object], Any]] = [
        (torch.set_rng_state, torch.get_rng_state()),
        (random.setstate, random.getstate()),
    ]
    if own_generator(device):

        def put_back(state: Tensor) -> None:
            set_random_state(state, device)

        states.append((put_back, random_state(device)))
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        # Not the legacy tuple, which only one kind of NumPy's generators has.
        states.append((numpy.random.set_state, numpy.random.get_state(legacy=False)))
    return states


@untraced
def restore_changed(
    states: list[tuple[Callable[[Any], object], Any]], device: torch.device
) -> None:
    """Restore the generators that have drawn since `shared_states` returned `states`."""
    # NumPy comes last, and may have been imported since.
    for (put_back, before), (_, after) in zip(states, shared_states(device), strict=False):
        if _comparable(before) != _comparable(after):
            put_back(before)


def global_draws(device: torch.device) -> tuple[Any, ...]:
    """Return a value that changes whenever one of the generators of `shared_states` draws."""
    return tuple(_comparable(state) for _, state in shared_states(device))


def _comparable(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.cpu().numpy().tobytes()
    if isinstance(state, dict):  # NumPy's
        return [_comparable(value) for value in state.values()]
    return state.tobytes() if hasattr(state, "tobytes") else state


def seed_one(generator: Any, seed: int) -> None:
    """Seed a generator.

    Args:
        generator: any of the kinds that this module's docstring lists.
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
    # NumPy is not imported here: a model that keeps one of its generators has imported it.
    numpy = sys.modules.get("numpy")
    of_numpy = () if numpy is None else (numpy.random.Generator, numpy.random.RandomState)
    return (torch.Generator, random.Random, *of_numpy)
