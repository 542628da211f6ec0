"""Weights files: read without running anything, fitted to a model, and told apart by digest.

Nothing here ever unpickles more than tensors and plain containers (`weights_only=True`).
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dent.errors import WeightsError

_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".tar", ".bin")
#: Keys under which training scripts keep the state dict beside the epoch, the optimizer, ...
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
#: What torch's own wrappers put before every name: DataParallel and DDP; torch.compile.
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 4


def read_weights(path: Path, digest: str | None = None) -> dict[str, Tensor]:
    """Reads a state dict from a file, on the CPU, running none of its content.

    Args:
        path: A `.safetensors` file, or what `torch.save` wrote of a state dict (`.pt`, `.pth`,
            `.ckpt`, `.tar`, `.bin`), bare or under a key such as `state_dict` or `model`.
        digest: SHA-256 (hex) that the file must have, or its first digits; checked before
            anything is decoded.

    Returns:
        Tensors by name.

    Raises:
        WeightsError: If the file is missing, has another digest, is damaged, holds Python objects
            that only unpickling could rebuild, or holds no state dict.
    """
    return _state_dict_in(read_checkpoint(path, digest), path)


def read_checkpoint(path: Path, digest: str | None = None) -> object:
    """Reads all that a file holds, on the CPU, running none of its content.

    Args:
        path: As in `read_weights`.
        digest: As in `read_weights`.

    Returns:
        Tensors by name of a `.safetensors` file; of another whatever `torch.save` was given, as
        long as it is tensors, numbers, texts and plain containers.

    Raises:
        WeightsError: As in `read_weights`, but for the state dict.
    """
    suffix = path.suffix.lower()
    if suffix != ".safetensors" and suffix not in _TORCH_SUFFIXES:
        raise WeightsError(
            f"{path}: expected a weights file ending in .safetensors or one of "
            f"{', '.join(_TORCH_SUFFIXES)}, got {path.suffix or 'no suffix'!r}"
        )
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise WeightsError(
            f"no weights file at {path} (looked from {Path.cwd()}): check the path"
        ) from None
    except OSError as error:
        raise WeightsError(f"cannot read the weights file {path}: {error.strerror}") from error
    if data[:512].lstrip()[:5].lower() in (b"<!doc", b"<html"):
        raise WeightsError(
            f"{path} holds a web page instead of weights: the download was answered by one (a "
            "login, a limit, a warning). Delete it, and download the file with a browser"
        )
    found = hashlib.sha256(data).hexdigest()
    if digest and not found.startswith(digest):
        raise WeightsError(
            f"{path} is not the registered file: expected SHA-256 {digest}, got {found} "
            f"({len(data)} bytes). It is damaged or another version; nothing of it was loaded"
        )
    return _from_safetensors(data, path) if suffix == ".safetensors" else _from_torch(data, path)


def _from_safetensors(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        state = safetensors.torch.load(data)
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is no intact safetensors file ({error}): copy or download it again; if "
            "torch.save wrote it, name it .pt"
        ) from error
    if not state:
        raise WeightsError(f"{path} holds no tensors")
    return state


def _from_torch(data: bytes, path: Path) -> object:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises weights_only=False, which runs whatever the file holds.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"Python objects ({named[1]})" if named else "more than tensors, or is no such file"
        raise WeightsError(
            f"{path} was refused, and nothing in it was run: it holds {what}, and rebuilding those "
            "could run any code. If you trust where it comes from, convert it once:\n"
            f"  {_conversion(path)}"
        ) from error
    except Exception as error:  # damaged bytes surface as almost any exception
        raise WeightsError(
            f"{path} is not an intact file of torch.save "
            f"({type(error).__name__}: {str(error).split('. ')[0]}): expected a state dict saved "
            "with torch.save(model.state_dict(), ...); copy or download it again"
        ) from error


def _conversion(path: Path) -> str:
    # torch.save rather than safetensors, which refuses models with shared weights.
    target = path.with_name(f"{path.stem}-weights.pt")
    return (
        f"python -c \"import torch; c = torch.load({str(path)!r}, map_location='cpu', "
        f"weights_only=False); c = next((c[k] for k in {_WRAPPERS} if k in c), c) "
        "if isinstance(c, dict) else c; "
        f'torch.save(c if isinstance(c, dict) else c.state_dict(), {str(target)!r})"'
    )


def _state_dict_in(loaded: object, path: Path) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping):
        inner = next((loaded[k] for k in _WRAPPERS if isinstance(loaded.get(k), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path}: expected a state dict, got a {type(loaded).__name__}")
    other = [f"{key} ({type(value).__name__})" for key, value in loaded.items()
             if not isinstance(value, Tensor)]  # fmt: skip
    if other or not loaded:
        raise WeightsError(
            f"{path}: expected a state dict (names to tensors), bare or under one of "
            f"{', '.join(_WRAPPERS)}; got {_some(other) or 'an empty one'}"
        )
    return {str(key): value for key, value in loaded.items()}


def fit_weights(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Copies a state dict into a model and makes sure that all of it arrived.

    Prefixes of DataParallel and torch.compile are stripped where no name fits with them. Values
    are cast to the model's dtypes. After an error the model may hold part of the weights: drop it.

    Args:
        model: The model to fill.
        state: Tensors by name.
        origin: Where they come from, for the message.

    Raises:
        WeightsError: If names or shapes differ, or a weight is not a number.
    """
    expected = model.state_dict()
    state = _without_prefixes(state, expected)
    reshaped = {
        name: f"{name}: {_kind(tensor)} in the file, {_kind(expected[name])} in the model"
        for name, tensor in state.items()
        if name in expected and not _fits(tensor, expected[name])
    }
    rest = {name: tensor for name, tensor in state.items() if name not in reshaped}
    try:
        # torch decides what is missing: modules may translate the names of older versions.
        outcome = model.load_state_dict(rest, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{origin} does not fit {type(model).__name__}: {error}") from error
    missing = [name for name in outcome.missing_keys if name not in reshaped]
    problems = [
        f"{len(names)} of the {total} {what}: {_some(names)}"
        for names, total, what in (
            (missing, len(expected), "entries of the model are missing in the file"),
            (outcome.unexpected_keys, len(state), "entries of the file are unknown to the model"),
            (
                list(reshaped.values()),
                len(expected),
                "entries of the model have another shape or kind",
            ),
        )
        if names
    ]
    if problems:
        raise WeightsError(
            f"{origin} does not fit {type(model).__name__}:\n  "
            + "\n  ".join(problems)
            + "\nName the architecture, and the number of classes, that the weights were saved from"
        )
    check_finite(model, origin)


def _without_prefixes(
    state: Mapping[str, Tensor], expected: Mapping[str, object]
) -> Mapping[str, Tensor]:
    while state.keys().isdisjoint(expected):
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _fits(tensor: Tensor, expected: object) -> bool:
    if not isinstance(expected, Tensor) or torch.nn.parameter.is_lazy(expected):
        return True
    # Casting integers (a quantized file) or complex numbers into float weights loses their meaning.
    return tensor.shape == expected.shape and (
        tensor.is_floating_point() or not expected.is_floating_point()
    )


def check_finite(model: nn.Module, origin: str) -> None:
    """Makes sure that every weight of a model is a number.

    Args:
        model: A model that was just filled.
        origin: Where its weights come from, for the message.

    Raises:
        WeightsError: If one is not.
    """
    broken = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    # Buffers may hold -inf on purpose (attention masks), never NaN.
    broken += [name for name, b in model.named_buffers() if b.isnan().any()]
    if broken:
        raise WeightsError(
            f"{origin}: {len(broken)} tensors hold NaN or infinite values ({_some(broken)}): the "
            "training diverged, overflowed half precision, or the file is damaged"
        )


def weights_digest(model: nn.Module) -> str:
    """The identity of a model's weights, for the provenance in records.

    SHA-256 over the sorted state dict: each entry's name, dtype and shape and its values' bytes
    (little-endian, row by row). The same on every device and in every memory format; another as
    soon as one bit, name, dtype or shape differs. Buffers that are not persistent are not in a
    state dict and not covered, nor is the architecture's code.

    Args:
        model: Any model; it is only read.

    Returns:
        64 hex digits.

    Raises:
        WeightsError: If the state dict holds something other than tensors.
    """
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            raise WeightsError(
                f"cannot take the digest of {type(model).__name__}: its state dict holds a "
                f"{type(tensor).__name__} at {name!r}, and only tensors have one meaning"
            )
        header = [name, str(tensor.dtype), list(tensor.shape)]
        total.update(json.dumps(header).encode() + b"\n")
        values = tensor.detach().cpu().resolve_conj().resolve_neg()
        total.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _some(items: Sequence[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f", and {more} more" if more > 0 else "")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
