"""Outputs of models: logits, or something that contains them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from dent.errors import InputError, UnsupportedModelError
from dent.support.plural import listed

_LOGITS: Final = "logits"
_SHOWN: Final = 6


class Logits(nn.Module):
    """Wrap a model that returns a dict, a tuple or an object, so that it returns only logits.

        model = Logits(ViTForImageClassification.from_pretrained(...))   # its output's .logits
        model = Logits(model, "out")                                     # output["out"]
        model = Logits(model, 1)                                         # output[1]

    Without `part`, the attribute or key `logits` is used, or the only tensor (N, classes). If
    several tensors are possible, `forward` raises an error.

    Args:
        model: Any module that takes a batch.
        part: Key, attribute or position of the logits in its output.

    Raises:
        InputError: `model` is not a module.
    """

    def __init__(self, model: nn.Module, part: str | int | None = None) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            got = type(model).__name__
            if isinstance(model, type):
                got = f"the class {model.__name__}: pass an instance of it"
            raise InputError(f"Logits expected a torch.nn.Module, got {got}")
        self.model = model
        self.part = part
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, classes) of a batch.

        Raises:
            UnsupportedModelError: The output does not have the part, or, without one, no single
                tensor that can be the logits.
        """
        output = self.model(x)
        logits = _part(output, self.part) if self.part is not None else _logits(output, len(x))
        if isinstance(logits, Tensor):
            return logits
        problem = "no such part" if self.part is not None else "no single tensor of logits"
        raise UnsupportedModelError(
            f"Logits found {problem} in the output of {type(self.model).__name__}, which is "
            f"{described(output)}. Name the part that has the logits (N, classes): Logits(model, "
            "'KEY') or Logits(model, POSITION)"
        )


def check_plain(logits: object, name: str, x: Tensor) -> None:
    """Check that logits, if they are a tensor, are a plain one: no code of its own sees the labels.

    Every function of torch calls methods of a subclass of Tensor with all its arguments: that of a
    loss also with the labels.

    Args:
        logits: What a defense returned.
        name: Name of the defense.
        x: The images that it got. Logits of the same class pass.

    Raises:
        InputError: They are of another subclass of Tensor.
    """
    kind = type(logits)
    if isinstance(logits, Tensor) and kind not in (Tensor, nn.Parameter, type(x)):
        raise InputError(
            f"{name} returned logits of the class {kind.__module__}.{kind.__qualname__}: return a "
            "plain torch.Tensor, such as logits.as_subclass(torch.Tensor)"
        )


def described(output: object) -> str:
    """Describe the output of a model: a shape, or the type and shape of each of its parts."""
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    parts = [
        f"{name} of shape {tuple(part.shape)}"
        if isinstance(part, Tensor)
        else f"{name} of type {type(part).__name__}"
        for name, part in _parts(output)
    ]
    if not parts:
        return type(output).__name__
    if isinstance(output, Sequence):
        parts = [f"element {part}" for part in parts]
    return f"{type(output).__name__} with {listed(parts, _SHOWN)}"


def advice(output: object) -> str:
    """Return advice how to turn an output into logits; empty if there is none.

    Args:
        output: A model's output that is not logits.
    """
    parts = list(_parts(output))
    if not any(isinstance(part, Tensor) for _, part in parts):
        return ""
    rows = next((len(part) for _, part in parts if isinstance(part, Tensor) and part.ndim), None)
    if rows is None:
        return ""
    if _logits(output, rows) is not None:
        return " Wrap the model: dent.Logits(model)."
    return f" Wrap the model, and say which part has the logits: dent.Logits(model, {parts[0][0]})."


def seem_probabilities(logits: Tensor) -> bool:
    """Return whether every row of an output (N, classes) is a probability distribution."""
    rows = logits.detach().float()
    ones = torch.ones(len(rows), dtype=rows.dtype, device=rows.device)
    return bool((rows >= 0).all()) and torch.allclose(rows.sum(1), ones, atol=1e-2)


def _parts(output: object) -> Iterator[tuple[str, Any]]:
    """Yield the parts of an output, each with its name as written in `Logits(model, PART)`."""
    if isinstance(output, Mapping):
        yield from ((repr(key), value) for key, value in output.items())
    elif isinstance(output, tuple | list):
        yield from ((str(index), value) for index, value in enumerate(output))
    elif not isinstance(output, Tensor) and isinstance(getattr(output, _LOGITS, None), Tensor):
        yield repr(_LOGITS), getattr(output, _LOGITS)


def _part(output: object, part: str | int) -> object:
    if isinstance(output, Mapping):
        return output.get(part)
    if isinstance(part, str):
        return getattr(output, part, None)
    inside = isinstance(output, Sequence) and -len(output) <= part < len(output)
    return output[part] if inside and isinstance(output, Sequence) else None


def _logits(output: object, rows: int) -> Tensor | None:
    """Return the logits in an output; None if it is unclear which part they are."""
    if isinstance(output, Tensor):
        return output
    attribute = _part(output, _LOGITS)
    if isinstance(attribute, Tensor):
        return attribute
    candidates = [
        part
        for _, part in _parts(output)
        if isinstance(part, Tensor) and part.ndim == 2 and len(part) == rows
    ]
    return candidates[0] if len(candidates) == 1 else None
