"""Find the state dict in a file from a training script."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from torch import Tensor

from dent.errors import WeightsError, WeightsWarning
from dent.support.plural import listed

#: Keys under which training scripts keep the weights, most specific first.
WRAPPERS: Final = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "params",
    "weights",
    "backbone",
)
#: Words in keys and names that mark a second copy of the weights, averaged over training steps.
_AVERAGES: Final = ("ema", "average", "averaged", "avg", "swa", "shadow", "polyak")
#: Words in the keys of entries that are not a model; optimizers, for example, also keep tensors.
_OTHERS: Final = ("optim", "sched", "scaler", "rng", "callback", "loop", "criterion", "loss", "amp")
_DEPTH: Final = 4
_SHOWN: Final = 4


def is_average(name: str) -> bool:
    """Return whether a key, or the first part of a name, says that the weights are an average."""
    return any(word in _AVERAGES for word in name.lower().replace(".", "_").split("_"))


def state_dict_in(loaded: object, path: Path, part: str | None) -> dict[str, Tensor]:
    """Return the state dict in a file.

    Args:
        loaded: The whole content of the file.
        path: The file, for messages.
        part: Selects one of several: keys joined by dots (`state_dict_ema`), or the first part of
            the names within a state dict (`ema_model`). By default, plain weights are preferred to
            averaged ones, with a warning.

    Raises:
        WeightsError: There is no state dict, no such part, or several state dicts of which none can
            be preferred.

    Warns:
        WeightsWarning: The file also holds other weights, such as an average, that were not taken.
    """
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path}: expected a state dict, got a {type(loaded).__name__}")
    dicts = state_dicts_in(loaded)
    if part is not None:
        return _part(dicts, path, part)
    if "" in dicts:
        return dicts[""]
    plain = [key for key in dicts if not is_average(key)]
    chosen = _one(plain) or _one(list(dicts))
    if chosen is None and dicts:
        raise WeightsError(
            f"{path} contains {len(dicts)} state dicts: {', '.join(dicts)}. Say which one, as in "
            f"{path}#{next(iter(dicts))}"
        )
    if chosen is None:
        raise WeightsError(
            f"{path}: expected a state dict (names to tensors), bare or under one of "
            f"{', '.join(WRAPPERS)}; got {_others(loaded) or 'an empty one'}"
        )
    if others := [key for key in dicts if key != chosen]:
        warnings.warn(
            f"{path} contains {len(dicts)} sets of weights: took {chosen!r}, not "
            f"{' or '.join(map(repr, others))}. To take the other, name it: {path}#{others[0]}",
            WeightsWarning,
            stacklevel=3,
        )
    return dicts[chosen]


def state_dicts_in(loaded: Mapping[object, object]) -> dict[str, dict[str, Tensor]]:
    """Return all state dicts in a file by their keys; the key of a bare one is ""."""
    return dict(_state_dicts(loaded))


def _part(dicts: Mapping[str, dict[str, Tensor]], path: Path, part: str) -> dict[str, Tensor]:
    if part in dicts:
        return dicts[part]
    start = f"{part}."
    for state in dicts.values():
        inside = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        if inside:
            return inside
    raise WeightsError(
        f"{path} contains no state dict {part!r}, and no names that begin with {start!r}; it "
        "contains "
        f"{', '.join(key or 'one bare state dict' for key in dicts) or 'no state dict at all'}"
    )


def _one(keys: list[str]) -> str | None:
    """Return the only key, or the only one that ends in a word of `WRAPPERS`, in their order."""
    if len(keys) == 1:
        return keys[0]
    for wrapper in WRAPPERS:
        matching = [key for key in keys if key.rpartition(".")[2] == wrapper]
        if len(matching) == 1:
            return matching[0]
    return None


def _state_dicts(
    loaded: Mapping[object, object], path: str = "", depth: int = _DEPTH
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every mapping of names to only tensors, with the keys to it, outermost first."""
    if loaded and all(isinstance(v, Tensor) for v in loaded.values()):
        if all(isinstance(key, str) for key in loaded):
            yield path, {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
        return
    if depth == 0:
        return
    for key, value in loaded.items():
        if isinstance(value, Mapping) and isinstance(key, str):
            if any(word in key.lower() for word in _OTHERS):
                continue
            yield from _state_dicts(value, f"{path}.{key}" if path else key, depth - 1)


def _others(loaded: Mapping[object, object]) -> str:
    others = [f"{key} ({type(value).__name__})" for key, value in loaded.items()
              if not isinstance(value, Tensor)]  # fmt: skip
    return listed(others, _SHOWN)
