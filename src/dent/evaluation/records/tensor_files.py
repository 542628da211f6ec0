"""The adversarial images of a run, as safetensors files with a digest on record."""

import hashlib
import math
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dent.evaluation.records.plan import tensor_file
from dent.evaluation.records.schema import TENSORS, TensorRef, UnitRecord
from dent.evaluation.records.spec import EvaluationSpec
from dent.storage.disk import read, refuse_linked_folder, sha256_of
from dent.storage.errors import RecordError

_HEADER: Final = 64 * 2**10
"""Maximum bytes of a safetensors file in addition to its values."""
_BYTES: Final = 4  # of a float32
ENTRY: Final = "adversarial"
"""Name of the tensor in a safetensors file."""


def packed(
    spec: EvaluationSpec, record: UnitRecord, adversarial: Tensor
) -> tuple[TensorRef, bytes]:
    """Return the reference to the images of a unit, and the bytes of their file.

    Args:
        spec: The specification of the run.
        record: The record of the unit.
        adversarial: The images, (attacked members, C, H, W).
    """
    file = tensor_file(spec, record.defense, record.attack, record.batch)
    return packed_as(file, adversarial)


def packed_as(file: str, adversarial: Tensor) -> tuple[TensorRef, bytes]:
    """Return the reference to a tensor in a file of the run folder, and the bytes of the file.

    Args:
        file: Name of the file in the folder.
        adversarial: The images, (N, C, H, W).
    """
    content = save({ENTRY: adversarial.detach().cpu().contiguous()})
    sha256 = hashlib.sha256(content).hexdigest()
    return TensorRef(file=file, sha256=sha256, shape=tuple(adversarial.shape)), content


def load_tensor(path: Path, record: UnitRecord) -> Tensor:
    """Load the submitted images of a recorded unit.

    Returns:
        float32 (attacked members, C, H, W), on the CPU.

    Raises:
        RecordError: The file was not kept, is missing, or does not match its digest.
    """
    ref = record.tensor
    if ref is None:
        raise RecordError(f"{path}: {record.key} has no tensor of its own")
    refuse_linked_folder(path / TENSORS)
    content = read(path / ref.file, _HEADER + _BYTES * math.prod(ref.shape))
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != ref.sha256:
        raise _unlike(path, ref, sha256)
    try:
        tensor = load(content)[ENTRY]
    except (SafetensorError, KeyError, ValueError) as error:
        raise RecordError(f"{path / ref.file} does not contain {ENTRY!r}: {error}") from None
    if tensor.dtype != torch.float32 or tuple(tensor.shape) != ref.shape:
        raise RecordError(f"{path / ref.file} contains {tensor.dtype} {tuple(tensor.shape)}")
    return tensor


def check_tensor(path: Path, ref: TensorRef) -> None:
    """Check a file of images against its digest. It is never in memory as a whole.

    Raises:
        RecordError: The file is missing, cannot be read, or does not match its digest.
    """
    refuse_linked_folder(path / TENSORS)
    sha256 = sha256_of(path / ref.file)
    if sha256 != ref.sha256:
        raise _unlike(path, ref, sha256)


def _unlike(path: Path, ref: TensorRef, sha256: str) -> RecordError:
    return RecordError(
        f"{path / ref.file} is not what was written: SHA-256 {sha256}, recorded {ref.sha256}"
    )
