"""Restore what the forward of a scripted module writes, which Python's attributes do not show."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import torch
from torch import Tensor, nn

from dent.adaptation.private_copy import tensors_in

_RESTORED: Final = (type(None), bool, int, float, str, Tensor, list, tuple, dict)


def scripted_state(model: nn.Module) -> Callable[[], None]:
    """Return a function that restores the current attributes of scripted and traced parts.

    These are training flags, buffers, numbers, text and containers. Parameters are left as they
    are. A frozen part (`torch.jit.freeze`) has no such attributes.
    """
    attributes = [
        (module, name, value)
        for module in model.modules()
        if isinstance(module, torch.jit.ScriptModule)
        for name, value in _attributes(module)
    ]
    tensors = [(tensor, tensor.clone()) for *_, value in attributes for tensor in tensors_in(value)]

    def put_back() -> None:
        for module, name, value in attributes:
            if not _same(getattr(module, name), value):
                setattr(module, name, value)
        with torch.no_grad():
            for tensor, before in tensors:
                if not torch.equal(tensor, before):
                    tensor.copy_(before)

    return put_back


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    kind = getattr(module, "_concrete_type", None)
    for name in kind.get_attributes() if kind is not None else ():
        with suppress(AttributeError, RuntimeError):  # a value that Python cannot represent
            value = getattr(module, name)
            if isinstance(value, _RESTORED) and not isinstance(value, nn.Parameter):
                yield name, value


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are equal; tensors are if they are the same object."""
    if isinstance(one, dict) and isinstance(other, dict):
        one, other = [*one.items()], [*other.items()]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    return bool(one == other)
