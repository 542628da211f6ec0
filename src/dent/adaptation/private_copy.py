"""A private copy of a model: its weights shared as constants, all else its own.

What copy.deepcopy would make, in a fraction of its time: a defense copies its model at every call.
Beyond it, functions and hooks that hold parts of the model hold those of the copy; all other hooks
are shared.
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
"""The attribute that `module.compile()` sets, which runs the original. PyTorch also leaves it out
of copies."""
_ATOMS: Final = frozenset({NoneType, bool, int, float, str, bytes, torch.dtype, torch.device})
_CONTAINERS: Final = frozenset({dict, OrderedDict, list, set})
_COPYING: Final = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")
"""Methods by which a class says how it is copied."""
_MAY_LEAD_BACK: Final = (*FOLLOWED, list, tuple, dict)


@untraced
def private_copy(model: nn.Module, *, shares_generators: bool = False) -> nn.Module:
    """Copy a model's structure and tensors in eval mode; share weights (detached) and hooks.

    Args:
        model: any module.
        shares_generators: draw from the random generators that the model keeps as attributes, so
            that they advance as by a call of the model; else from copies, which start where they
            are now.

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
    new.eval()  # whose result a train() of the model's own may have forgotten to return
    return new


def _is_plain(module: nn.Module) -> bool:
    return _copies_plainly(type(module))  # type: ignore[arg-type] # classes are hashable


@functools.cache
def _copies_plainly(kind: type[nn.Module]) -> bool:
    """Whether a class leaves it to Python, or to PyTorch, how it is copied."""
    for name in _COPYING:
        method, base_method = getattr(kind, name, None), getattr(nn.Module, name, None)
        # PyTorch's own __setstate__ but adds what pickles of old versions lack.
        if method is not base_method and not getattr(method, "__module__", "").startswith(
            "torch.nn.modules."
        ):
            return False
    return not any("__slots__" in vars(base) for base in kind.__mro__)


def _copy_plainly(module: nn.Module, memo: dict[int, Any]) -> list[tuple[dict[str, Any], str]]:
    """Copy attribute by attribute into `memo`, as copy.deepcopy would.

    Returns:
        Where the copy has callables that may lead to the original: attributes, and their names.
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
    """Let functions and hooks of the copies hold the copies' parts."""
    for module in modules:
        if not _is_plain(module):
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
    """Map the identity of what a private copy does not deep-copy to what it has in its place."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        # In a replica of torch.nn.DataParallel, parameters are plain tensors listed aside.
        for weights in (module._parameters, vars(module).get("_former_parameters", {})):
            for weight in weights.values():
                if weight is not None:
                    # Inference tensors cannot be saved for backward; all others are shared.
                    shared = weight.clone() if weight.is_inference() else weight.detach()
                    memo.setdefault(id(weight), shared)
        if not _is_plain(module):  # its hooks are shared, whatever copies it
            for kind in _HOOKS:
                memo.update((id(hook), hook) for hook in getattr(module, kind).values())
    for tensor in kept_tensors(model):
        if tensor.grad_fn is not None or tensor.is_inference():
            # What a forward has kept of an earlier batch, say: deepcopy refuses its graph.
            memo.setdefault(id(tensor), tensor.detach().clone())
    return memo


def kept_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield all tensors that are no parameters."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in _NO_TENSORS and type(value) not in _ATOMS:
                yield from _tensors(value, set())


def _tensors(value: object, visited: set[int]) -> Iterator[Tensor]:
    """Yield the tensors in containers within containers; modules among them are not entered."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple | set) and value and id(value) not in visited:
        visited.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            if type(item) not in _ATOMS:
                yield from _tensors(item, visited)
