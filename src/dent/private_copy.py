"""A private copy of a model: its weights shared as constants, its hooks shared, all else its own.

What copy.deepcopy would make, in a fraction of its time: a defense copies its model at every call.
"""

import copy
import functools
from collections import OrderedDict
from collections.abc import Iterator
from types import NoneType
from typing import Any, Final

import torch
from torch import Tensor, nn

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
_ATOMS: Final = frozenset({NoneType, bool, int, float, str, bytes, torch.dtype, torch.device})
_CONTAINERS: Final = frozenset({dict, OrderedDict, list, set})
_COPYING: Final = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")
"""Methods by which a class says how it is copied."""


def private_copy(model: nn.Module) -> nn.Module:
    """Copy a model's structure and tensors in eval mode; share weights (detached) and hooks.

    Raises:
        UnsupportedModelError: the model holds something that cannot be copied.
    """
    try:
        memo = _not_copied(model)
        for module in reversed(list(model.modules())):  # children before their parents
            if id(module) not in memo and _copies_plainly(type(module)):  # type: ignore[arg-type]
                _copy_plainly(module, memo)
        return copy.deepcopy(model, memo).eval()
    except (TypeError, RuntimeError, AttributeError) as error:
        raise UnsupportedModelError(
            f"The structure of {type(model).__name__} cannot be copied: {error}. Adaptation works "
            "on a private copy (weights shared); make copy.deepcopy(model) work."
        ) from error


@functools.cache
def _copies_plainly(kind: type[nn.Module]) -> bool:
    """Whether a class leaves it to Python, or to PyTorch, how it is copied."""
    for name in _COPYING:
        own, plain = getattr(kind, name, None), getattr(nn.Module, name, None)
        # PyTorch's own __setstate__ but adds what pickles of old versions lack.
        if own is not plain and not getattr(own, "__module__", "").startswith("torch.nn.modules."):
            return False
    return not any("__slots__" in vars(each) for each in kind.__mro__)


def _copy_plainly(module: nn.Module, memo: dict[int, Any]) -> None:
    """Copy attribute by attribute into `memo`, as copy.deepcopy would."""
    new = object.__new__(type(module))
    memo[id(module)] = new
    own = vars(new)
    for name, value in vars(module).items():
        kind = type(value)
        if kind in _ATOMS or (kind is tuple and all(type(each) in _ATOMS for each in value)):
            own[name] = value
        elif kind in _CONTAINERS and not value:
            own[name] = memo.setdefault(id(value), kind())
        else:
            own[name] = copy.deepcopy(value, memo)


def _not_copied(model: nn.Module) -> dict[int, Any]:
    """Map the identity of what a private copy does not deep-copy to what it has in its place."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        # In a replica of torch.nn.DataParallel, parameters are plain tensors listed aside.
        for weights in (module._parameters, vars(module).get("_former_parameters", {})):
            for weight in weights.values():
                if weight is not None:
                    # Inference tensors cannot be saved for backward; all others are shared.
                    own = weight.clone() if weight.is_inference() else weight.detach()
                    memo.setdefault(id(weight), own)
        for kind in _HOOKS:
            memo.update((id(hook), hook) for hook in getattr(module, kind).values())
    for tensor in _kept_tensors(model):
        if tensor.grad_fn is not None or tensor.is_inference():
            # What a forward has kept of an earlier batch, say: deepcopy refuses its graph.
            memo.setdefault(id(tensor), tensor.detach().clone())
    return memo


def _kept_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield all tensors that are no parameters."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in _NO_TENSORS and type(value) not in _ATOMS:
                yield from _tensors(value, set())


def _tensors(value: object, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors in containers within containers; modules among them are not entered."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple | set) and value and id(value) not in seen:
        seen.add(id(value))
        for each in value.values() if isinstance(value, dict) else value:
            if type(each) not in _ATOMS:
                yield from _tensors(each, seen)
