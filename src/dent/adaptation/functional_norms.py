"""Find normalization functions that a model calls outside of its normalization layers."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dent.adaptation.lookalikes import looks_like_norm, modules_in_attributes
from dent.adaptation.norm import norm_layers, own_tensor
from dent.adaptation.other_batch_norm import BatchNormCall
from dent.adaptation.private_copy import tensors_in

_FIRST: Final = (1, 2)
_THIRD: Final = (2, 3)
_NAMED: Final[dict[Callable[..., Any], tuple[str, tuple[int, int]]]] = {
    F.batch_norm: ("batch_norm", (3, 4)),
    F.instance_norm: ("instance_norm", (3, 4)),
    torch.batch_norm: ("batch_norm", _FIRST),
    torch.instance_norm: ("instance_norm", _FIRST),
    torch.native_batch_norm: ("native_batch_norm", _FIRST),
    torch.native_group_norm: ("native_group_norm", _FIRST),
    torch.native_layer_norm: ("native_layer_norm", _THIRD),
}
_FUNCTIONS: Final[dict[Callable[..., Any], tuple[str, tuple[int, int]]]] = _NAMED | {
    getattr(namespace, name): (name, _THIRD)
    for name in ("group_norm", "layer_norm", "rms_norm")
    for namespace in (F, torch)
}
"""Each normalization function, with its name and the positions of its scale and shift."""


class FunctionalNorms(TorchFunctionMode):
    """Context that notes normalization functions with other tensors than the adapted ones.

    Such a function is called in the forward of another module, or by a layer that the model does
    not have as a submodule, but in a global variable, a closure or another object. No adaptation
    changes it.

    Args:
        model: a private copy of the model, which will run.
        adapts_all: whether every scale and shift of a normalization layer is a plain tensor that
            requires a gradient while it runs. Then any other is noted; otherwise only one that a
            module other than a normalization layer holds.

    Attributes:
        called: each function with the shape of such a tensor, in order and without repetition.
        running: the shape of running statistics by which one of them normalized; None without.
    """

    def __init__(self, model: nn.Module, *, adapts_all: bool) -> None:
        super().__init__()
        self._adapts_all = adapts_all
        self.watch(model)

    def watch(self, model: nn.Module) -> None:
        """Forget all notes, and note what another private copy calls from now on."""
        layers = {id(layer): layer for _, layer in norm_layers(model)}
        adapted = [
            id(own_tensor(layer, name)) for layer in layers.values() for name in ("weight", "bias")
        ]
        # `unadapted` warns about modules that look like normalizations, and about hidden ones.
        held = [module for _, holder in modules_in_attributes(model) for module in holder.modules()]
        hidden = {id(module) for module in held}
        self._known, self._others = dict[int, Tensor](), dict[int, Tensor]()
        for module in (*model.modules(), *held):
            known = id(module) in layers or id(module) in hidden or looks_like_norm(module)
            tensors = self._known if known else self._others
            tensors.update((id(tensor), tensor) for tensor in _own_tensors(module))
        for key in adapted if self._adapts_all else ():
            self._known.pop(key, None)  # their layers get others in place of these
        for key in self._known:
            self._others.pop(key, None)
        self.called: list[str] = []
        self.running: tuple[int, ...] | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and note it if it normalizes."""
        kwargs = kwargs or {}
        if func in _FUNCTIONS and not self._is_weight(args[0] if args else kwargs.get("input")):
            name, places = _FUNCTIONS[func]
            others = [value for value in (*args[1:], *kwargs.values()) if id(value) in self._others]
            affine = [*(args[place] for place in places if place < len(args))]
            affine += [kwargs.get("weight"), kwargs.get("bias")]
            others += [value for value in affine if self._is_constant(value)]
            if others:
                self._note(name, others[0])
            if func is F.batch_norm:
                call = BatchNormCall(*args, **kwargs)
                mean = call.running_mean
                if mean is not None and id(mean) not in self._known and not call.training:
                    self.running = tuple(mean.shape)
        return func(*args, **kwargs)

    def _is_weight(self, value: Any) -> bool:
        """Return whether a tensor is a weight of the model, which some convolutions normalize."""
        if not isinstance(value, Tensor):
            return False
        whole = value if value._base is None else value._base
        return id(whole) in self._known or id(whole) in self._others

    def _is_constant(self, value: Any) -> bool:
        """Return whether a scale or shift stays fixed, and no known layer holds it."""
        if not self._adapts_all or not isinstance(value, Tensor) or id(value) in self._known:
            return False
        return not value.requires_grad or isinstance(value, nn.Parameter)  # a hidden one

    def _note(self, name: str, tensor: Tensor) -> None:
        described = f"{name} of shape {tuple(tensor.shape)}"
        if described not in self.called:
            self.called.append(described)


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    for tensors in (module._parameters, module._buffers, vars(module)):
        for value in tensors.values():
            if isinstance(value, Tensor | list | tuple | dict):
                yield from tensors_in(value)
