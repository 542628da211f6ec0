"""Find layers and functions that normalize but are not adapted, for a warning."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dent.adaptation.norm import affine_attributes, norm_layers, own_tensor
from dent.adaptation.other_batch_norm import BatchNormCall
from dent.support.plural import agreeing, counted

_SCALES: Final = ("weight", "bias", "gamma", "beta", "scale", "shift")
_DEPTH: Final = 3
_FUNCTIONS: Final[dict[Callable[..., Any], str]] = {
    getattr(namespace, name): name
    for name in ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm")
    for namespace in (F, torch)
}


def unadapted(model: nn.Module) -> str | None:
    """Return a message about layers that look like normalizations but are not adapted, or None."""
    adapted_ids = {id(layer) for _, layer in norm_layers(model)}
    unknown = [
        (name, module)
        for name, module in model.named_modules()
        if id(module) not in adapted_ids and _looks_like_one(module)
    ]
    recorded = [(name, module) for name, module in unknown if _is_recorded(module)]
    own = [(name, module) for name, module in unknown if not _is_recorded(module)]
    sentences = []
    if own:
        sentences.append(
            f"{_counted_kinds(own)} look like normalizations, but are not adapted: "
            "scale, shift and statistics stay fixed. If they compute normalized * scale + "
            f"shift, call dent.register_norm({type(own[0][1]).__name__}) before Dent, with "
            "channels='last' if they normalize the last axis; otherwise ignore "
            "dent.UnadaptedLayersWarning."
        )
    if recorded:
        sentences.append(
            f"{_counted_kinds(recorded)} look like normalizations in a recorded graph, whose "
            "layers cannot be replaced, so they are not adapted: use the module from before "
            "torch.jit or torch.export recorded it."
        )
    hidden = list(_hidden(model))
    if hidden:
        sentences.append(
            f"{counted(len(hidden), 'normalization layer')} (first {hidden[0]}) "
            f"{agreeing(len(hidden), 'are')} held in a plain list, "
            "tuple or dict, where PyTorch does not see them, so they are not adapted: put them "
            "into torch.nn.ModuleList or ModuleDict."
        )
    return " ".join(sentences) or None


def _is_recorded(module: nn.Module) -> bool:
    """Return whether a module is part of a graph of TorchScript or torch.export."""
    return isinstance(module, torch.jit.ScriptModule) or type(module) is nn.Module


def _counted_kinds(modules: Sequence[tuple[str, nn.Module]]) -> str:
    kinds = Counter(_kind(module) for _, module in modules)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{listed} (first {modules[0][0]!r})"


def _kind(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return f"scripted {module.original_name}"
    return "exported module" if type(module) is nn.Module else type(module).__name__


def _looks_like_one(module: nn.Module) -> bool:
    """Return whether a module has parameters and a name or statistics like a normalization's.

    False if any of its parameters has more than one axis.
    """
    tensors = [own_tensor(module, name) for name in _SCALES]
    own_tensors = [
        tensor for tensor in tensors if tensor is not None and tensor.is_floating_point()
    ]
    own_tensors += [parameter for parameter in module._parameters.values() if parameter is not None]
    if not own_tensors or any(_axes(tensor) > 1 for tensor in own_tensors):
        return False
    name = _kind(module).lower()
    statistics = own_tensor(module, "running_mean") is not None
    return statistics or "norm" in name or name.endswith("bn") or name.startswith("bn")


def _axes(tensor: Tensor) -> int:
    return sum(size > 1 for size in tensor.shape)


def _hidden(model: nn.Module) -> Iterator[str]:
    """Yield where each normalization layer is held that PyTorch does not see."""
    known = {id(module) for module in model.modules()}
    for holder, submodule in _held(model):
        for _, layer in norm_layers(submodule):
            if id(layer) not in known and any(affine_attributes(layer)):
                known.add(id(layer))
                yield f"in {holder!r}"


def _held(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules in attributes and containers, with the dotted name of the attribute."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if not attribute.startswith("_"):  # unlike PyTorch's own registers
                for submodule in _modules_in(value, _DEPTH):
                    yield f"{name}.{attribute}".lstrip("."), submodule


def _modules_in(value: Any, depth: int) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif depth and isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _modules_in(item, depth - 1)


class FunctionalNorms(TorchFunctionMode):
    """Context that notes normalization functions with tensors of other than normalization layers.

    Such a function is called in the forward of another module, which no adaptation changes.

    Args:
        model: the model that will run.

    Attributes:
        called: each function with the shape of such a tensor, in order and without repetition.
        running: the shape of running statistics by which one of them normalized; None without.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        adapted = {id(layer) for _, layer in norm_layers(model)}
        self._others = {
            id(tensor): tensor
            for module in model.modules()
            # `unadapted` warns about modules that look like normalizations.
            if id(module) not in adapted and not _looks_like_one(module)
            for tensors in (module._parameters, module._buffers, vars(module))
            for tensor in tensors.values()
            if isinstance(tensor, Tensor)
        }
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
        if func in _FUNCTIONS:
            others = [value for value in (*args[1:], *kwargs.values()) if id(value) in self._others]
            if others:
                self._note(_FUNCTIONS[func], others[0])
            if func is F.batch_norm:
                call = BatchNormCall(*args, **kwargs)
                if id(call.running_mean) in self._others and not call.training:
                    self.running = tuple(self._others[id(call.running_mean)].shape)
        return func(*args, **kwargs)

    def _note(self, name: str, tensor: Tensor) -> None:
        described = f"{name} of shape {tuple(tensor.shape)}"
        if described not in self.called:
            self.called.append(described)
