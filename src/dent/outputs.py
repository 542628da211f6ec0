"""The output of a model: logits, or something that contains them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn

from dent.errors import UnsupportedModelError

_LOGITS: Final = "logits"
_SHOWN: Final = 6


class Logits(nn.Module):
    """Wrap a model that returns a dict, a tuple or an object, so that it returns only logits.

        model = Logits(ViTForImageClassification.from_pretrained(...))   # its output's .logits
        model = Logits(model, "out")                                     # output["out"]
        model = Logits(model, 1)                                         # output[1]

    Without a part, it uses the attribute or key `logits`, or the only tensor (N, classes). If
    several are possible, it raises an error.

    Args:
        model: Takes a batch.
        part: Key, attribute or position of the logits in what it returns.
    """

    def __init__(self, model: nn.Module, part: str | int | None = None) -> None:
        super().__init__()
        self.model = model
        self.part = part
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, classes) of a batch.

        Raises:
            UnsupportedModelError: The part is not there, or none was named and several could be
                meant.
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
    more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return f"{type(output).__name__} with {', '.join(parts[:_SHOWN])}{more}"


def advice(output: object) -> str:
    """Say how to turn an output into logits; empty if no advice is known.

    Args:
        output: The output, which is not logits.
    """
    parts = list(_parts(output))
    if not any(isinstance(part, Tensor) for _, part in parts):
        return ""
    rows = next(len(part) for _, part in parts if isinstance(part, Tensor) and part.ndim)
    if _logits(output, rows) is not None:
        return " Wrap the model: dent.Logits(model)."
    return f" Wrap the model, and say which part has the logits: dent.Logits(model, {parts[0][0]})."


def _parts(output: object) -> Iterator[tuple[str, Any]]:
    """The parts of an output, each as it is written in `Logits(model, PART)`."""
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
    """The logits in an output, if there is no doubt which they are."""
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
