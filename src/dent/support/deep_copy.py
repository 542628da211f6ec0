"""copy.deepcopy for modules, in less than half of the time and with the same result.

A defense copies its model at every call, and an evaluation copies the defense for every query.
"""

import copy
import functools
from collections import OrderedDict
from collections.abc import Sequence
from types import NoneType
from typing import Any, Final

import torch
from torch import Tensor, nn

ATOMS: Final = frozenset({NoneType, bool, int, float, str, bytes, torch.dtype, torch.device})
"""Types of values that a copy shares."""
HOOKS: Final = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
"""Attributes of a module that hold its hooks."""
_CONTAINERS: Final = frozenset({dict, OrderedDict, list, set})
_COMPILED: Final = "_compiled_call_impl"
"""Attribute that `module.compile()` sets, which would run the original. PyTorch also leaves it out
of copies."""
_COPYING: Final = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")
"""Methods by which a class customizes how it is copied."""


def deep_copy(thing: Any, memo: dict[Any, Any]) -> Any:
    """Return what `copy.deepcopy(thing, memo)` returns.

    Args:
        thing: a module; any other object is copied by copy.deepcopy alone.
        memo: as for `copy.deepcopy`: copies by the identity of the original. Copies are added.

    Raises:
        Exception: whatever `copy.deepcopy` raises.
    """
    if isinstance(thing, nn.Module):
        copy_modules([*thing.modules()], memo)
    return copy.deepcopy(thing, memo)


def copy_modules(
    modules: Sequence[nn.Module], memo: dict[Any, Any], *, shares_hooks: bool = False
) -> list[tuple[dict[str, Any], str]]:
    """Add copies of modules to `memo`, except of those that copy themselves.

    Args:
        modules: a model's modules, parents before their children.
        memo: as for `copy.deepcopy`.
        shares_hooks: give the copies the hooks of the originals, in containers of their own.

    Returns:
        For each value that was copied and may hold something: the attribute dictionary of the
        module's copy, and the name of the value in it.
    """
    values = []
    for module in reversed(modules):  # a parent then finds its children in `memo`
        if id(module) not in memo and is_plain(module):
            values += _copy_plainly(module, memo, shares_hooks=shares_hooks)
    return values


def is_plain(module: nn.Module) -> bool:
    """Return whether the class of a module leaves its copying to Python or PyTorch."""
    return _copies_plainly(type(module))  # type: ignore[arg-type] # classes are hashable


@functools.cache
def _copies_plainly(kind: type[nn.Module]) -> bool:
    for name in _COPYING:
        method, base_method = getattr(kind, name, None), getattr(nn.Module, name, None)
        # PyTorch's own __setstate__ only adds attributes that pickles of old versions lack.
        if method is not base_method and not getattr(method, "__module__", "").startswith(
            "torch.nn.modules."
        ):
            return False
    return not any("__slots__" in vars(base) for base in kind.__mro__)


def _copy_plainly(
    module: nn.Module, memo: dict[Any, Any], *, shares_hooks: bool
) -> list[tuple[dict[str, Any], str]]:
    new = object.__new__(type(module))
    memo[id(module)] = new
    attributes, values = vars(new), []
    for name, value in vars(module).items():
        kind = type(value)
        if kind in ATOMS or (kind is tuple and all(type(item) in ATOMS for item in value)):
            attributes[name] = value
        elif kind in _CONTAINERS and not value:
            attributes[name] = memo.setdefault(id(value), kind())
        elif name != _COMPILED:
            shared = shares_hooks and name in HOOKS
            attributes[name] = copy.copy(value) if shared else _copy_value(value, memo)
            values.append((attributes, name))
    return values


def _copy_value(value: Any, memo: dict[Any, Any]) -> Any:
    """Copy a value; dictionaries of ordinary tensors take the short way."""
    kind = type(value)
    if kind in ATOMS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is dict and all(type(key) is str for key in value):
        new = memo[id(value)] = dict[str, Any]()
        for key, item in value.items():
            new[key] = _copy_value(item, memo)
        return new
    if kind is Tensor and _is_ordinary(value):
        storage = value.untyped_storage()
        storages = memo.setdefault("torch", {})  # where PyTorch notes which storages it has copied
        if storage._cdata not in storages and storage.nbytes() == value.nbytes:
            tensor = memo[id(value)] = value.clone()
            storages[storage._cdata] = tensor.untyped_storage()
            return tensor
    return copy.deepcopy(value, memo)


def _is_ordinary(tensor: Tensor) -> bool:
    """Return whether a tensor's clone has everything that its deep copy has."""
    return (
        not tensor.requires_grad
        and tensor.device.type in {"cpu", "cuda"}
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not (tensor.is_quantized or tensor.is_neg() or tensor.is_conj())
        and tensor.grad is None
        and not vars(tensor)
    )
