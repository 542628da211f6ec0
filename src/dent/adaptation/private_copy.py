"""Private copies of a model, which share its weights as constants and own everything else.

A defense copies its model at every call, so this takes a fraction of the time of copy.deepcopy,
with the same result. In addition, functions and hooks that refer to parts of the model refer to the
copy's parts. All other hooks are shared.
"""

import copy
import functools
from collections import OrderedDict
from collections.abc import Iterator
from types import NoneType
from typing import Any, Final

import torch
from torch import Tensor, nn

from dent.adaptation.random_state import copied, kept_generators
from dent.adaptation.rebinding import FOLLOWED, Rebinding
from dent.adaptation.untraced import untraced
from dent.errors import UnsupportedModelError

_HOOKS: Final = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_NO_TENSORS: Final = frozenset({"_parameters", "_modules", *_HOOKS})
_NO_CALLABLES: Final = frozenset({"_parameters", "_modules", "_buffers"})
_COMPILED: Final = "_compiled_call_impl"
"""Attribute that `module.compile()` sets, which would run the original. PyTorch also leaves it out
of copies."""
_ATOMS: Final = frozenset({NoneType, bool, int, float, str, bytes, torch.dtype, torch.device})
_CONTAINERS: Final = frozenset({dict, OrderedDict, list, set})
_COPYING: Final = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")
"""Methods by which a class customizes how it is copied."""
_MAY_LEAD_BACK: Final = (*FOLLOWED, list, tuple, dict)


@untraced
def private_copy(model: nn.Module, *, shares_generators: bool = False) -> nn.Module:
    """Return a copy of a model in eval mode that shares its weights (detached) and hooks.

    Args:
        model: any module.
        shares_generators: draw from the random generators that the model keeps as attributes, so
            that they advance as in a call of the model. Otherwise the copy draws from copies of
            them, which start in their current state.

    Raises:
        UnsupportedModelError: the model holds something that cannot be copied.
    """
    try:
        memo = _not_copied(model)
        for generator in kept_generators(model):
            memo[id(generator)] = generator if shares_generators else copied(generator)
        modules = list(model.modules())
        callables: list[tuple[dict[str, Any], str]] = []
        for module in reversed(modules):  # children before their parents
            if id(module) not in memo and _is_plain(module):
                callables += _copy_plainly(module, memo)
        new: nn.Module = copy.deepcopy(model, memo)
        _rebind(modules, callables, memo)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise UnsupportedModelError(
            f"The structure of {type(model).__name__} cannot be copied: {error}. Adaptation works "
            "on a private copy (weights shared); make copy.deepcopy(model) work."
        ) from error
    _put_into_eval_mode(new)
    return new


def _put_into_eval_mode(model: nn.Module) -> None:
    try:
        model.eval()  # its result is not used: a model's own train() may return None
    except Exception as error:  # whatever a train() of its own raises
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be put into eval mode: its eval() raises "
            f"{type(error).__name__}: {error}. Dent always runs a model in eval mode."
        ) from error


def _is_plain(module: nn.Module) -> bool:
    return _copies_plainly(type(module))  # type: ignore[arg-type] # classes are hashable


@functools.cache
def _copies_plainly(kind: type[nn.Module]) -> bool:
    """Return whether a class leaves its copying to Python or PyTorch."""
    for name in _COPYING:
        method, base_method = getattr(kind, name, None), getattr(nn.Module, name, None)
        # PyTorch's own __setstate__ only adds attributes that pickles of old versions lack.
        if method is not base_method and not getattr(method, "__module__", "").startswith(
            "torch.nn.modules."
        ):
            return False
    return not any("__slots__" in vars(base) for base in kind.__mro__)


def _copy_plainly(module: nn.Module, memo: dict[int, Any]) -> list[tuple[dict[str, Any], str]]:
    """Copy a module, attribute by attribute, into `memo`, as copy.deepcopy would.

    Returns:
        The copy's attribute dict and a name in it, for each value that may refer to the original.
    """
    new = object.__new__(type(module))
    memo[id(module)] = new
    attributes = vars(new)
    callables = []
    for name, value in vars(module).items():
        kind = type(value)
        if kind in _ATOMS or (kind is tuple and all(type(item) in _ATOMS for item in value)):
            attributes[name] = value
        elif kind in _CONTAINERS and not value:
            attributes[name] = memo.setdefault(id(value), kind())
        elif name in _HOOKS:
            attributes[name] = copy.copy(value)
            callables.append((attributes, name))
        elif name != _COMPILED:
            attributes[name] = copy.deepcopy(value, memo)
            if name not in _NO_CALLABLES and isinstance(value, _MAY_LEAD_BACK):
                callables.append((attributes, name))
    return callables


def _rebind(
    modules: list[nn.Module], callables: list[tuple[dict[str, Any], str]], memo: dict[int, Any]
) -> None:
    """Make functions and hooks of the copies refer to the copies' parts."""
    for module in modules:
        if not _is_plain(module) and id(module) in memo:  # not inside a scripted module
            attributes = vars(memo[id(module)])
            names = [
                name for name, value in attributes.items() if isinstance(value, _MAY_LEAD_BACK)
            ]
            callables += [(attributes, name) for name in names if name not in _NO_CALLABLES]
    if callables:
        rebinding = Rebinding(memo)
        for attributes, name in callables:
            attributes[name] = rebinding.refill(attributes[name])


def _not_copied(model: nn.Module) -> dict[int, Any]:
    """Map the identity of each object that is not deep-copied to its replacement in the copy."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        # A replica of torch.nn.DataParallel lists its parameters separately, as plain tensors.
        for weights in (module._parameters, vars(module).get("_former_parameters", {})):
            for weight in weights.values():
                if weight is not None:
                    # Inference tensors cannot be saved for backward; all others are shared.
                    shared = weight.clone() if weight.is_inference() else weight.detach()
                    memo.setdefault(id(weight), shared)
        if not _is_plain(module):  # share its hooks, whatever method copies it
            for kind in _HOOKS:
                memo.update((id(hook), hook) for hook in getattr(module, kind).values())
    for tensor in kept_tensors(model):
        if tensor.grad_fn is not None or tensor.is_inference():
            # Such as a tensor that a forward kept from an earlier batch: deepcopy refuses a graph.
            memo.setdefault(id(tensor), tensor.detach().clone())
    return memo


def kept_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield all tensors that a model keeps in buffers and attributes, except parameters."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in _NO_TENSORS and type(value) not in _ATOMS:
                yield from tensors_in(value)


def tensors_in(value: object, visited: set[int] | None = None) -> Iterator[Tensor]:
    """Yield the tensors in nested containers; modules among them are not entered."""
    visited = set() if visited is None else visited
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple | set) and value and id(value) not in visited:
        visited.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            if type(item) not in _ATOMS:
                yield from tensors_in(item, visited)
