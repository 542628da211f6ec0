"""Read weights files without running code, fit them to a model, and identify them by digest.

This module never unpickles more than tensors and plain containers (`weights_only=True`).
"""

from __future__ import annotations

import contextlib
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
from dent.models.convert import command, globals_in, is_harmful
from dent.models.file_kinds import is_safetensors, recognized
from dent.models.state_dicts import state_dict_in
from dent.models.weight_names import aligned
from dent.support.plural import agreeing, counted, listed

_TORCH_SUFFIXES = (".pt", ".pth", ".th", ".pyth", ".ckpt", ".tar", ".bin")
#: The suffixes of weights files.
SUFFIXES = (".safetensors", *_TORCH_SUFFIXES)
_SHOWN = 4


class _PythonObjectsError(WeightsError):
    """A file was refused because it holds Python objects, not because it is damaged."""


def read_weights(path: Path, digest: str | None = None) -> dict[str, Tensor]:
    """Read a state dict from a file to the CPU, without running any code in the file.

    Args:
        path: A `.safetensors` file, or a state dict that `torch.save` wrote (`.pt`, `.pth`, `.th`,
            `.pyth`, `.ckpt`, `.tar`, `.bin`), bare or under a key such as `state_dict` or `model`.
            If a file holds several, `FILE#KEY` selects one: `w.pth#state_dict_ema`.
        digest: SHA-256 (hex) that the file must have, or its first digits; checked before
            anything is decoded.

    Returns:
        Tensors by name.

    Raises:
        WeightsError: If the file is missing, has another digest, is damaged, holds Python objects
            that only unpickling could rebuild, holds no state dict, or holds several of which none
            can be preferred.

    Warns:
        WeightsWarning: If the file also holds other weights, such as an average (EMA), that were
            not taken.
    """
    file, part = _parted(path)
    return state_dict_in(read_checkpoint(file, digest), file, part)


def _parted(path: Path) -> tuple[Path, str | None]:
    """Split `FILE#KEY` into the file and the key of one of its state dicts."""
    file, mark, part = str(path).rpartition("#")
    if not mark or not part or path.exists():
        return path, None
    return Path(file), part


def read_checkpoint(path: Path, digest: str | None = None) -> object:
    """Read the whole content of a file to the CPU, without running any code in the file.

    Args:
        path: As in `read_weights`, without a key.
        digest: As in `read_weights`.

    Returns:
        Tensors by name for a `.safetensors` file. For any other file, the object that `torch.save`
        was given, if it consists of tensors, numbers, strings and plain containers.

    Raises:
        WeightsError: As in `read_weights`, except for the errors about state dicts.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
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
    if what := recognized(data):
        raise WeightsError(f"{path} {what}")
    return _decoded(data, path, digest)


def check_download(download: Path, file: Path, digest: str | None = None) -> None:
    """Check that a download is whole, before it gets its name.

    A weights file that holds Python objects passes if it is whole, because it can be converted.

    Args:
        download: The download, under a temporary name.
        file: The name that it is to get. Its suffix says what the download must be: weights or
            JSON. Any content passes under another suffix.
        digest: As in `read_weights`.

    Raises:
        WeightsError: The download is cut off, has another digest, or is something else, such as a
            web page.
    """
    name, suffix = Path(file.name), file.suffix.lower()
    if suffix == ".json":
        try:
            json.loads(download.read_bytes())
        except ValueError as error:
            raise WeightsError(f"{name} is damaged or not a JSON file: {error}") from error
    if suffix not in SUFFIXES:
        return
    data = download.read_bytes()
    if what := recognized(data):
        # The last sentence says what to do with a file that is there. This one is not kept.
        raise WeightsError(f"{name} {what.rpartition('. ')[0] or what}")
    with contextlib.suppress(_PythonObjectsError):
        _decoded(data, name, digest)


def _decoded(data: bytes, path: Path, digest: str | None) -> object:
    actual = hashlib.sha256(data).hexdigest()
    if digest and not actual.startswith(digest):
        raise WeightsError(
            f"{path} is not the registered file: expected SHA-256 {digest}, got {actual} "
            f"({counted(len(data), 'byte')}). It is damaged or another version. Nothing was "
            "loaded"
        )
    if path.suffix.lower() == ".safetensors":
        return _from_safetensors(data, path)
    if is_safetensors(data):
        raise WeightsError(f"{path} is a safetensors file: name it {path.stem}.safetensors")
    return _from_torch(data, path)


def _from_safetensors(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        state = safetensors.torch.load(data)
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is damaged or not a safetensors file ({error}): copy or download it again; if "
            "torch.save wrote it, name it .pt"
        ) from error
    if not state:
        raise WeightsError(f"{path} contains no tensors")
    # safetensors writes a shared tensor once, and its other names into the metadata.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    shared = {
        alias: state[name]
        for alias, name in header.get("__metadata__", {}).items()
        if name in state and alias not in state
    }
    return {**state, **shared}


def _from_torch(data: bytes, path: Path) -> object:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message suggests unpickling, which would run any code in the file.
        raise _refusal(path, data, error) from error
    except Exception as error:  # damaged bytes surface as almost any exception
        raise WeightsError(
            f"{path} is damaged or not a file of torch.save "
            f"({type(error).__name__}: {str(error).split('. ')[0]}): expected a state dict saved "
            "with torch.save(model.state_dict(), ...); copy or download it again"
        ) from error


def _refusal(path: Path, data: bytes, error: pickle.UnpicklingError) -> WeightsError:
    match = re.search(r"GLOBAL ([\w.]+)", str(error))
    names = globals_in(data) or ([match[1]] if match else [])
    if not names:
        return WeightsError(
            f"{path} is damaged or not a file of torch.save, and nothing in it was run: "
            "expected a state dict saved with torch.save(model.state_dict(), ...); copy or "
            "download it again"
        )
    refused = (
        f"{path} was refused, and nothing in it was run: it contains Python objects "
        f"({listed(names, _SHOWN)}), and rebuilding those could run any code."
    )
    if harmful := [name for name in names if is_harmful(name)]:
        return _PythonObjectsError(
            f"{refused} No weights file needs {listed(harmful, _SHOWN)}: delete it"
        )
    return _PythonObjectsError(
        f"{refused} If you trust its source, convert it once. This rebuilds these objects and no "
        f"others:\n  {command(path, names)}"
    )


def fit_weights(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Copy a state dict into a model, and check that it is complete.

    Words that wrappers put before or into every name (`module.`, `model.`, `_orig_mod.`) are
    removed if the file then has every entry of the model. Values are cast to the model's dtypes. A
    tensor that the model has under several names needs only one of them in the file. After an
    error, the model may hold part of the weights: discard it.

    Args:
        model: The model to fill.
        state: Tensors by name.
        origin: The source of the weights, for the message.

    Raises:
        WeightsError: If names or shapes differ, a weight is NaN or infinite, or the file has
            several copies of the model, or different values for a tensor that the model shares.

    Warns:
        WeightsWarning: If the file also holds averaged weights, or entries of the training, that
            were not taken.
    """
    expected = model.state_dict()
    state = aligned(state, expected.keys(), origin)
    shared = _shared(model)
    _check_shared(shared, state, origin)
    reshaped = {
        name: f"{name}: {_kind(tensor)} in the file, {_kind(expected[name])} in the model"
        for name, tensor in state.items()
        if name in expected and not _fits(tensor, expected[name])
    }
    rest = {name: tensor for name, tensor in state.items() if name not in reshaped}
    try:
        # Let torch decide which names are missing: modules may translate names of older versions.
        outcome = model.load_state_dict(rest, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{origin} does not fit {type(model).__name__}: {error}") from error
    missing = [
        name
        for name in outcome.missing_keys
        if name not in reshaped and not any(alias in rest for alias in shared.get(name, ()))
    ]
    problems = [
        f"{len(names)} of the {total} {what}: {listed(names, _SHOWN)}"
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


def _shared(model: nn.Module) -> dict[str, list[str]]:
    """Map each name of a tensor that has several names in a model to all of its names."""
    names: dict[int, list[str]] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        names.setdefault(id(tensor), []).append(name)
    return {name: group for group in names.values() if len(group) > 1 for name in group}


def _check_shared(
    shared: Mapping[str, Sequence[str]], state: Mapping[str, Tensor], origin: str
) -> None:
    for name, group in shared.items():
        saved = [member for member in group if member in state]
        if name in saved and not torch.equal(state[name], state[saved[0]]):
            raise WeightsError(
                f"{origin} has different values for {saved[0]} and {name}, which are one tensor "
                "in the model: build the model with separate tensors"
            )


def _fits(tensor: Tensor, expected: object) -> bool:
    if not isinstance(expected, Tensor) or torch.nn.parameter.is_lazy(expected):
        return True
    # Integers (a quantized file) or complex numbers lose their meaning when cast to float weights.
    return tensor.shape == expected.shape and (
        tensor.is_floating_point() or not expected.is_floating_point()
    )


def check_finite(model: nn.Module, origin: str) -> None:
    """Check that a model's parameters are finite, and that no buffer has a NaN.

    Args:
        model: A model that was just filled.
        origin: The source of its weights, for the message.

    Raises:
        WeightsError: If a parameter is NaN or infinite, or a buffer has a NaN.
    """
    broken = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    # Buffers may hold -inf on purpose (attention masks), never NaN.
    broken += [name for name, b in model.named_buffers() if b.isnan().any()]
    if broken:
        raise WeightsError(
            f"{origin}: {counted(len(broken), 'tensor')} {agreeing(len(broken), 'contain')} NaN "
            f"or infinite values ({listed(broken, _SHOWN)}): the "
            "training diverged, overflowed half precision, or the file is damaged"
        )


def weights_digest(model: nn.Module) -> str:
    """Return the digest of a model's weights, for records.

    It is the SHA-256 over the sorted state dict: each entry's name, dtype and shape, and the bytes
    of its values (little-endian, row by row). It is the same on every device and in every memory
    format, and changes if one bit, name, dtype or shape changes. It does not cover non-persistent
    buffers, which are not in a state dict, or the architecture's code.

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
                f"cannot take the digest of {type(model).__name__}: its state dict contains a "
                f"{type(tensor).__name__} at {name!r}, and only tensors have one meaning"
            )
        total.update(_content(name, tensor))
    return total.hexdigest()


def have_same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Return whether two models have the same weights, whatever the names of their entries.

    Names differ if one model is wrapped in a module. Both models are only read.
    """
    return first is second or _values(first) == _values(second)


def _values(model: nn.Module) -> list[str]:
    """Return the digests of all tensors in a state dict, without their names, in order."""
    tensors = (each for each in model.state_dict().values() if isinstance(each, Tensor))
    return sorted(hashlib.sha256(_content("", tensor)).hexdigest() for tensor in tensors)


def _content(name: str, tensor: Tensor) -> bytes:
    """Return the bytes of an entry of a state dict that its digest covers."""
    header = json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n"
    values = tensor.detach().cpu().resolve_conj().resolve_neg()
    return header + values.reshape(-1).view(torch.uint8).numpy().tobytes()


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
