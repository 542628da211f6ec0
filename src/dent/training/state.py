"""The state of a training run, and its checkpoint: one file, replaced as a whole."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel

from dent.errors import DentWarning
from dent.storage.disk import is_there, refuse_special, write_atomically
from dent.storage.errors import RecordError

CHECKPOINT: Final = "checkpoint.safetensors"


class InexactResumeWarning(DentWarning):
    """A checkpoint of an older version lacks a part of the state, so resuming is not exact."""


@dataclass(frozen=True)
class OwnPart:
    """The part of the state that differs between the processes of a training run.

    Attributes:
        loss: sum of the losses in the epoch so far, on the images of the process.
        correct: correct predictions in the epoch so far, on the images of the process.
        statistics: buffers of the model, by name: running statistics of the process's images.
    """

    loss: float
    correct: int
    statistics: dict[str, Tensor]


@dataclass
class TrainingState:
    """The weights, momentum, average and counters of a training run.

    All randomness derives from the seed and `step`, so an exact resume needs nothing else. Of the
    other processes, it needs their `OwnPart`. (Their averages are never used.)

    Attributes:
        model: the bare module, in training mode.
        optimizer: its SGD.
        average: the exponential average of its weights, or None.
        scaler: the scaler of the loss in fp16, or None.
        step: steps taken.
        metrics: lines written to the metrics file.
        best: watched images that the best weights so far classify correctly, under PGD unless
            training is nominal; -1 before any.
        best_epoch: the epoch after which the best weights were kept; 0 before any.
        loss: sum of the losses in the epoch so far.
        correct: correct predictions in the epoch so far.
        seconds: time spent in earlier epochs and sessions.
        stopped: why training ended before its last epoch; "" if it did not.
    """

    model: nn.Module
    optimizer: SGD
    average: AveragedModel | None
    scaler: GradScaler | None = None
    step: int = 0
    metrics: int = 0
    best: int = -1
    best_epoch: int = 0
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    stopped: str = ""
    _counters: tuple[str, ...] = field(
        default=("step", "metrics", "best", "best_epoch", "loss", "correct", "seconds", "stopped"),
        repr=False,
    )

    @property
    def measured(self) -> nn.Module:
        """The model whose accuracy counts: the average, if there is one."""
        return self.model if self.average is None else self.average.module

    def own_part(self) -> OwnPart:
        """Return the part of the state that only this process has."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        statistics = {
            name: value.detach().cpu().contiguous()
            for name, value in self.model.state_dict().items()
            if name not in parameters
        }
        return OwnPart(self.loss, self.correct, statistics)

    def save(self, folder: Path, identity: str, others: Sequence[OwnPart] = ()) -> None:
        """Write the checkpoint.

        Args:
            folder: the folder of the run.
            identity: the identity of the run.
            others: the parts of the other processes, in their order.

        Raises:
            RecordError: the disk is full or the folder cannot be written to; the last checkpoint
                stays unchanged.
        """
        counters = {name: getattr(self, name) for name in self._counters}
        metadata = {"identity": identity, "counters": json.dumps(counters)}
        tensors = {name: value.detach().cpu().contiguous() for name, value in self._tensors()}
        if others:
            counts = [{"loss": part.loss, "correct": part.correct} for part in others]
            metadata["others"] = json.dumps(counts)
        for number, part in enumerate(others, start=1):
            tensors |= {f"process.{number}.{n}": value for n, value in part.statistics.items()}
        if self.scaler is not None:
            metadata["scaler"] = json.dumps(self.scaler.state_dict())
        write_atomically(folder / CHECKPOINT, safetensors.torch.save(tensors, metadata))

    def restore(self, folder: Path, identity: str, process: int = 0, processes: int = 1) -> bool:
        """Load the folder's checkpoint if there is one, and return whether there was.

        Args:
            folder: the folder of the run.
            identity: the identity of the run.
            process: the number of this process.
            processes: the number of processes of the run.

        Raises:
            RecordError: the checkpoint is damaged, or belongs to another training run.
        """
        path = folder / CHECKPOINT
        if not is_there(path):
            return False
        metadata, tensors = _read(path)
        counters = metadata["counters"]
        if metadata["identity"] != identity or set(counters) != set(self._counters):
            raise RecordError(f"{path} belongs to another training: choose another folder")
        self._load(tensors)
        for name, value in counters.items():
            setattr(self, name, value)
        others, scaler = metadata["others"], metadata["scaler"]
        if self.scaler is not None and scaler is not None:
            self.scaler.load_state_dict(scaler)
        if 0 < process <= len(others):
            self._load_own(others[process - 1], tensors, f"process.{process}.")
        is_whole = len(others) == processes - 1 and (self.scaler is None or scaler is not None)
        if not is_whole and process == 0:
            warnings.warn(
                f"{path} was written by an older version, which did not keep the whole state. "
                "Training goes on, but its weights and metrics will not be exactly those of an "
                "uninterrupted run.",
                InexactResumeWarning,
                stacklevel=2,
            )
        return True

    def _load(self, tensors: dict[str, Tensor]) -> None:
        momentum = {
            n.removeprefix("momentum."): t for n, t in tensors.items() if _is(n, "momentum")
        }
        for name, parameter in self.model.named_parameters():
            if name in momentum:
                buffer = momentum[name].to(parameter.device).clone()
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        with torch.no_grad():
            for name, value in self._tensors():
                if not _is(name, "momentum"):
                    value.copy_(tensors[name])

    def _load_own(self, counts: dict[str, Any], tensors: dict[str, Tensor], prefix: str) -> None:
        """Load the part of one process, whose tensors have names with this prefix."""
        self.loss, self.correct = counts["loss"], counts["correct"]
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if prefix + name in tensors:
                    value.copy_(tensors[prefix + name])

    def _tensors(self) -> list[tuple[str, Tensor]]:
        tensors = [(f"model.{name}", value) for name, value in self.model.state_dict().items()]
        if self.average is not None:
            tensors += [(f"average.{n}", value) for n, value in self.average.state_dict().items()]
        for name, parameter in self.model.named_parameters():
            buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                tensors.append((f"momentum.{name}", buffer))
        return tensors


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a checkpoint's metadata, parsed, and its tensors."""
    try:
        refuse_special(path)
        with safe_open(path, framework="pt") as file:
            text = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {
            "identity": text.get("identity"),
            "counters": json.loads(text.get("counters", "")),
            "others": json.loads(text.get("others", "[]")),
            "scaler": json.loads(text.get("scaler", "null")),
        }
    except (SafetensorError, OSError, ValueError) as error:
        raise RecordError(
            f"{path} is damaged or not a checkpoint ({error}): delete it to train from the "
            "start, or restore it from a copy"
        ) from error
    return metadata, tensors


def averaged(model: nn.Module, decay: float) -> AveragedModel | None:
    """Return an exponential average of a model's weights and statistics; None for decay 0."""
    if not decay:
        return None

    def multi_avg_fn(averages: Any, values: Any, steps: Any) -> None:
        # Early in training, the full decay would keep too much of the initial weights.
        keep = min(decay, (1 + int(steps)) / (10 + int(steps)))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - keep)
        else:  # counters of batches
            torch._foreach_copy_(averages, values)

    return AveragedModel(model, multi_avg_fn=multi_avg_fn, use_buffers=True).eval()


def write_weights(path: Path, model: nn.Module, metadata: dict[str, Any] | None = None) -> bytes:
    """Write a model's state dict to a safetensors file as a whole, and return its bytes."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    content: bytes = safetensors.torch.save(state, metadata)
    write_atomically(path, content)
    return content


def stored_dtype(weights: bytes) -> torch.dtype:
    """Return the dtype of the floating-point values in a safetensors file's bytes."""
    stored: dict[str, Tensor] = safetensors.torch.load(weights)
    return next(value.dtype for value in stored.values() if value.is_floating_point())


def write_half(path: Path, weights: bytes) -> None:
    """Write a safetensors file's floating-point values in half precision (float16)."""
    stored: dict[str, Tensor] = safetensors.torch.load(weights)
    rounded = {k: v.half() if v.is_floating_point() else v for k, v in stored.items()}
    write_atomically(path, safetensors.torch.save(rounded))


def _is(name: str, part: str) -> bool:
    return name.startswith(f"{part}.")
