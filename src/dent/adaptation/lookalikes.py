"""Find layers that normalize but are not adapted, for a warning."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from dent.adaptation.norm import affine_attributes, norm_layers, own_tensor
from dent.support.plural import agreeing, counted

_SCALES: Final = ("weight", "bias", "gamma", "beta", "scale", "shift")
_DEPTH: Final = 3


def unadapted(model: nn.Module) -> str | None:
    """Return a message about layers that look like normalizations but are not adapted, or None."""
    adapted_ids = {id(layer) for _, layer in norm_layers(model)}
    unknown = [
        (name, module)
        for name, module in model.named_modules()
        if id(module) not in adapted_ids and looks_like_norm(module)
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


def looks_like_norm(module: nn.Module) -> bool:
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
    for holder, submodule in modules_in_attributes(model):
        for _, layer in norm_layers(submodule):
            if id(layer) not in known and any(affine_attributes(layer)):
                known.add(id(layer))
                yield f"in {holder!r}"


def modules_in_attributes(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
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
