"""Convert a file with Python objects into a weights file, if its owner trusts it.

`torch.load` refuses Python objects because rebuilding them runs code. Here the owner lists the
names of the objects that may be rebuilt, and no others are.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import io
import os
import secrets
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from dent.errors import WeightsError
from dent.models.state_dicts import state_dict_in, state_dicts_in

#: Modules whose functions access files, processes or the interpreter: no weights file needs them.
_HARMFUL: Final = (
    "os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "runpy", "importlib", "pty",
    "ctypes", "pickle", "code", "codeop", "webbrowser", "urllib", "http", "multiprocessing",
)  # fmt: skip
_HARMFUL_BUILTINS: Final = (
    "eval",
    "exec",
    "compile",
    "open",
    "getattr",
    "__import__",
    "breakpoint",
)


def globals_in(data: bytes) -> list[str]:
    """Return the names that a file of torch.save needs, besides tensors and plain containers.

    Args:
        data: The file's content. None of it is run.

    Returns:
        Full names such as `argparse.Namespace`; empty if they cannot be listed.
    """
    try:
        return sorted(get_unsafe_globals_in_checkpoint(io.BytesIO(data)))
    except Exception:  # files older than torch 1.6, or damaged: any exception
        return []


def is_harmful(name: str) -> bool:
    """Return whether only malicious files use a name."""
    module, _, last = name.rpartition(".")
    if module in ("builtins", "__builtin__"):
        return last in _HARMFUL_BUILTINS
    return module.partition(".")[0] in _HARMFUL


def command(path: Path, names: Sequence[str]) -> str:
    """Return the shell command that converts a file and allows these names."""
    call = f"convert({str(path)!r}, allow={list(names)!r})"
    return f'python -c "from dent.models.convert import convert; {call}"'


def convert(path: str | Path, *, allow: Sequence[str]) -> Path:
    """Rebuild objects of the listed names in a file, and write its weights into a new file.

    Rebuilding an object runs its code: list only names that you trust.

    Args:
        path: A file of `torch.save`: a checkpoint with Python objects beside the weights, or a
            whole model.
        allow: Full names of the classes and functions that may be used, such as
            `argparse.Namespace`.

    Returns:
        The path of the new file, `NAME-weights.pt` beside the old one. It holds a bare state dict,
        or a dict of all state dicts by key, including averages.

    Raises:
        WeightsError: A name cannot be imported, or only malicious files use it; the file needs more
            names; or it holds no weights.
    """
    path = Path(path)
    allowed: list[Any] = [_imported(name) for name in allow]
    if any(name.startswith("numpy") for name in allow):
        allowed += [np.dtype, *{type(np.dtype(code)) for code in np.typecodes["All"]}]
    try:
        with safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # for old names of NumPy's modules
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        missing = sorted({*globals_in(path.read_bytes())} - {*allow})
        more = f" It also needs {', '.join(missing)}: add those that you trust." if missing else ""
        first = str(error).split(". ")[0].splitlines()[0] if str(error) else ""
        raise WeightsError(
            f"{path} could not be rebuilt with {', '.join(allow)} alone "
            f"({type(error).__name__}: {first}).{more}"
        ) from error
    target = path.with_name(f"{path.stem}-weights.pt")
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        torch.save(_weights(_without_modules(loaded), path), part)
        os.replace(part, target)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return target


def _weights(loaded: object, path: Path) -> Mapping[str, object]:
    """Return the state dict, or all of them by key, from which `FILE#KEY` can select one."""
    state_dicts = state_dicts_in(loaded) if isinstance(loaded, Mapping) else {}
    return state_dicts if len(state_dicts) > 1 else state_dict_in(loaded, path, None)


def _without_modules(loaded: object) -> object:
    """Replace each module with its state dict."""
    if isinstance(loaded, nn.Module):
        return dict(loaded.state_dict())
    if isinstance(loaded, Mapping):
        return {key: _without_modules(value) for key, value in loaded.items()}
    return loaded


def _imported(name: str) -> object:
    if is_harmful(name):
        raise WeightsError(
            f"{name} is never allowed, because no weights file needs it: delete the file"
        )
    module, _, last = name.rpartition(".")
    try:
        value: object = getattr(importlib.import_module(module) if module else builtins, last)
    except (ImportError, AttributeError) as error:
        raise WeightsError(
            f"{name} cannot be imported here ({error}): run this where the file was made, or use "
            "the full name from the error message"
        ) from error
    return value
