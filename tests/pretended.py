"""An emulated device: its tensors are stored on the CPU, but report another device.

PyTorch sees it as `meta`. All operations compute real values. As on a GPU, operations on tensors
of two devices fail. Operations that would make the CPU wait for a GPU are recorded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

ELSEWHERE = torch.device("meta")
_ATEN = torch.ops.aten
_READS = (
    _ATEN._local_scalar_dense,
    _ATEN.equal,
    _ATEN.nonzero,
    _ATEN.masked_select,
    _ATEN._unique2,
    _ATEN.unique_consecutive,
    _ATEN.bincount,
)
_MOVES = (_ATEN._to_copy, _ATEN.copy_)
_MAKERS = (torch.tensor, torch.as_tensor)
_TAKES_INDICES = (_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_)


class Elsewhere(Tensor):
    """A tensor on the emulated device."""

    is_meta = False  # unlike real meta tensors, it holds values
    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "Elsewhere":
        new: Elsewhere = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            layout=here.layout,
            device="cpu",
            dispatch_device=True,
        )
        new.here = here
        return new

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"elsewhere: {self.here!r}"

    def tolist(self) -> Any:
        """Replace PyTorch's method, which refuses subclasses."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return ELSEWHERE
        raise RuntimeError(f"{func} outside of `pretending()`")


class _Mode(TorchDispatchMode):
    def __init__(self, *, float64: bool) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.float64 = float64

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return ELSEWHERE
        given = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        away = [each for each in given if isinstance(each, Elsewhere)]
        asked = kwargs.get("device")
        goes = bool(away) if asked is None else torch.device(asked) == ELSEWHERE
        packet = func.overloadpacket
        if _arrives(packet, args, given, away=bool(away), goes=goes):
            self.reads.append(f"{func} to the device")
        if asked is not None:
            kwargs = kwargs | {"device": torch.device("cpu")} if goes else kwargs
        if away:
            self._look(func, packet, args, given, goes=goes)
        if packet is _ATEN.copy_:
            goes = isinstance(args[0], Elsewhere)
        of = {id(each.here): each for each in away}
        found = func(*pytree.tree_map(_here, args), **pytree.tree_map(_here, kwargs))

        def wrapped(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in of:  # changed in place
                return of[id(value)]
            if goes and value.dtype == torch.float64 and not self.float64:
                raise TypeError(f"{func}: the device has no float64")
            return Elsewhere(value) if goes else value

        return pytree.tree_map(wrapped, found)

    def _look(self, func: Any, packet: Any, args: Any, given: list[Tensor], *, goes: bool) -> None:
        """Refuse tensors of two devices, and record operations that would wait for a GPU."""
        others = [each for each in given if not isinstance(each, Elsewhere) and each.dim()]
        if others and packet not in (*_MOVES, *_TAKES_INDICES):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        masks = packet in _TAKES_INDICES and any(
            isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        leaves = packet in _MOVES and not (
            isinstance(args[0], Elsewhere) if packet is _ATEN.copy_ else goes
        )
        if packet in _READS or masks or leaves:
            self.reads.append(str(func))


def _arrives(packet: Any, args: Any, given: list[Tensor], *, away: bool, goes: bool) -> bool:
    """Return whether an operation copies a tensor from the CPU to the device."""
    if packet is _ATEN.copy_:
        return isinstance(args[0], Elsewhere) and not isinstance(args[1], Elsewhere)
    if packet in _TAKES_INDICES:
        return away and len(given) > sum(isinstance(each, Elsewhere) for each in given)
    return packet is _ATEN._to_copy and goes and not away


class _Makers(TorchFunctionMode):
    """Intercepts `torch.tensor` and `torch.as_tensor`, which `_Mode` does not see."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        asked = kwargs.get("device")
        if func in _MAKERS and asked is not None and torch.device(asked) == ELSEWHERE:
            kwargs.pop("device")
            return func(*args, **kwargs).to(ELSEWHERE)
        return func(*args, **kwargs)


def _here(value: Any) -> Any:
    return value.here if isinstance(value, Elsewhere) else value


@contextmanager
def pretending(*, float64: bool = True) -> Iterator[list[str]]:
    """Emulate the device `ELSEWHERE`; yield a list of the operations that would wait for a GPU.

    Args:
        float64: whether the device supports float64.
    """
    future = torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    future.set_overwrite_module_params_on_conversion(
        True
    )  # the device of a parameter cannot change
    try:
        with _Mode(float64=float64) as mode, _Makers():
            yield mode.reads
    finally:
        future.set_overwrite_module_params_on_conversion(before)
