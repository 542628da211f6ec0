"""Rename the entries of a weights file to a model's names, if a framework wrapped the model.

Wrappers add words before every name (`module.`, `model.`, `backbone.`) or between its parts
(`features.module.0.weight`). A prefix is removed only if it precedes every entry of the model
(batch counters aside), so no prefix is guessed from its name.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from dent.errors import WeightsError, WeightsWarning
from dent.models.state_dicts import is_average
from dent.support.plural import agreeing, counted, listed

if TYPE_CHECKING:
    from torch import Tensor

#: Words that torch's own wrappers put between the parts of a name: those of DataParallel and DDP,
#: torch.compile, FSDP, and activation checkpointing.
_WRAPPERS: Final = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
#: Counters that torch's AveragedModel and wrappers of other packages keep beside the weights.
_COUNTERS: Final = ("n_averaged", "initted", "step", "num_updates", "decay")
#: Words in the first part of a name that mark an entry of the training, not of the model.
_TRAINING: Final = ("criterion", "loss", "metric", "accuracy")
_BATCHES: Final = "num_batches_tracked"
_SHOWN: Final = 4


def aligned(
    state: Mapping[str, Tensor], expected: Collection[str], origin: str
) -> dict[str, Tensor]:
    """Rename a state dict's entries to a model's names, if wrappers explain the difference.

    Args:
        state: Tensors by name, from a file.
        expected: The names of the model's entries.
        origin: The source of the weights, for messages.

    Returns:
        Tensors under the model's names. If no prefix precedes every entry of the model, all tensors
        of the file, so that the caller can report what is missing.

    Raises:
        WeightsError: Several prefixes precede every entry of the model and none can be preferred,
            or the file holds more entries that may belong to the model.

    Warns:
        WeightsWarning: The file also holds averaged weights, or entries of the training, that were
            not taken.
    """
    names = _unwrapped(_without_counters(state, expected), expected)
    required = {name for name in expected if not name.endswith(_BATCHES)}
    if not required or names.keys() >= required:
        return names
    prefixes = _prefixes(names, required)
    chosen = _choose(prefixes, origin)
    if chosen is None:
        return _without_common(names, expected)
    inside = {k.removeprefix(chosen): v for k, v in names.items() if k.startswith(chosen)}
    others = [prefix for prefix in prefixes if prefix != chosen]
    leftover = [name for name in names if not name.startswith((chosen, *others))]
    if unknown := [name for name in leftover if not _of_training(name)]:
        raise WeightsError(
            f"{origin}: the entries below {chosen!r} fit, but the file contains "
            f"{len(unknown)} more: {listed(unknown, _SHOWN)}. If these change the logits (a "
            "normalization, a layer in front), build the model with them. To leave them out, "
            f"name the part to load: {origin}#{chosen.removesuffix('.')}"
        )
    _tell(chosen, others, leftover, origin)
    return inside


def _without_counters(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in state.items()
        if name in expected or name not in _COUNTERS or tensor.numel() != 1
    }


def _without_common(names: dict[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Remove a first part that all names share, so that messages show the model's names."""
    parts = {name.partition(".")[0] for name in names}
    if len(parts) != 1 or not names.keys().isdisjoint(expected):
        return names
    bare = {name.partition(".")[2]: tensor for name, tensor in names.items()}
    return names if bare.keys().isdisjoint(expected) else bare


def _unwrapped(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Remove the words that torch's wrappers put into names, unless the model's names have them."""
    expected_parts = {part for name in expected for part in name.split(".")}
    words = {word for word in _WRAPPERS if word not in expected_parts}
    bare = {name: ".".join(p for p in name.split(".") if p not in words) for name in state}
    if len(set(bare.values())) < len(bare) or not all(bare.values()):
        return dict(state)
    return {bare[name]: tensor for name, tensor in state.items()}


def _prefixes(names: Mapping[str, Tensor], required: set[str]) -> list[str]:
    """Return every prefix that precedes all the required names, in the file's order."""
    anchor = max(required, key=len)
    candidates = [name.removesuffix(anchor) for name in names if name.endswith(f".{anchor}")]
    return [prefix for prefix in candidates if all(f"{prefix}{name}" in names for name in required)]


def _choose(prefixes: list[str], origin: str) -> str | None:
    plain = [prefix for prefix in prefixes if not is_average(prefix)] or prefixes
    if len(plain) > 1:
        quoted = ", ".join(repr(prefix) for prefix in plain)
        raise WeightsError(
            f"{origin} contains the model {len(plain)} times, below {quoted}. Say which one, as in "
            f"{origin}#{plain[0].removesuffix('.')}"
        )
    return plain[0] if plain else None


def _of_training(name: str) -> bool:
    return any(word in name.partition(".")[0].lower() for word in _TRAINING)


def _tell(chosen: str, other_prefixes: list[str], leftover: list[str], origin: str) -> None:
    sentences = []
    if other_prefixes:
        sentences.append(
            f"the names below {chosen!r} were taken, not those below "
            f"{' or '.join(map(repr, other_prefixes))}. To take the other, name it: "
            f"{origin}#{other_prefixes[0].removesuffix('.')}"
        )
    if leftover:
        sentences.append(
            f"{counted(len(leftover), 'entry')} of the training {agreeing(len(leftover), 'were')} "
            f"left out: {listed(leftover, _SHOWN)}"
        )
    if sentences:
        warnings.warn(f"{origin}: {'; '.join(sentences)}", WeightsWarning, stacklevel=4)
