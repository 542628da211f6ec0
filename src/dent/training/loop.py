"""The training loop, which resumes exactly after its process was killed at any moment."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from dent.attacks import PGD
from dent.errors import ConfigError, DentError, DentWarning
from dent.evaluation.records.plan import seed_of
from dent.storage.disk import is_there, open_regular, read, write_all, writing
from dent.support.devices import widest
from dent.support.plural import counted
from dent.training.augment import augment
from dent.training.engine import gather, share
from dent.training.losses import training_loss
from dent.training.state import TrainingState, averaged, write_weights
from dent.training.watch import Watched, collapsed, measure

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from dent.data import ImageDataset
    from dent.threat import ThreatModel
    from dent.training.recipe import Recipe
    from dent.training.spec import TrainingSpec

METRICS: Final = "metrics.jsonl"
LAST: Final = "last.safetensors"
BEST: Final = "best.safetensors"
CHECKPOINT_SECONDS: Final = 60.0


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a training run, reported after every step.

    Attributes:
        step: steps taken, including those of earlier sessions.
        steps: total steps.
        epoch: the current epoch, from 1.
        epochs: total epochs.
        loss: mean loss in the epoch so far.
        accuracy: share of the images trained on that were classified correctly, in the epoch so
            far.
        watched: the latest measurement; None before an epoch has ended in this session.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    accuracy: float
    watched: Watched | None


OnStep = Callable[[TrainingProgress], None]


class CatastrophicOverfittingWarning(DentWarning):
    """A collapse of PGD accuracy: training stopped, and the best weights were kept."""


class Training:
    """A training run in its folder.

    Args:
        spec: the identity of the run.
        model: the model with its initial weights, on the CPU or a GPU.
        train: the training set.
        watch: the dataset whose last `spec.watched` images are watched, in the spec's order.
        accelerator: from `engine.accelerator`.
        folder: an existing folder that no other run uses.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        model: nn.Module,
        train: ImageDataset,
        watch: ImageDataset,
        accelerator: Accelerator,
        folder: Path,
    ) -> None:
        self.spec, self.recipe, self.folder = spec, spec.read_recipe(), folder
        self._train, self._watch, self._accelerator = train, watch, accelerator
        self._positions = torch.tensor(spec.arranged(len(train)))
        self._watched_positions = spec.arranged(len(watch))[len(watch) - spec.watched :]
        if self.recipe.batch_size % spec.processes:
            raise ConfigError(
                f"batch_size={self.recipe.batch_size} cannot be shared equally by "
                f"{counted(spec.processes, 'process')}: choose a multiple."
            )
        self.steps_per_epoch = max(spec.used // self.recipe.batch_size, 1)
        bare = model.to(accelerator.device).to(memory_format=torch.channels_last).train()
        optimizer = _sgd(bare, self.recipe)
        average = averaged(bare, self.recipe.ema)
        self.state = TrainingState(bare, optimizer, average, accelerator.scaler)
        self.state.restore(folder, spec.identity, accelerator.process_index, spec.processes)
        self._wrapped, self._optimizer = _prepared(accelerator, bare, optimizer)
        if spec.processes > 2:
            self._order_buckets()
        self._began = time.monotonic()
        self._watched: Watched | None = None
        self._means = (0.0, 0.0)

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return self.recipe.epochs * self.steps_per_epoch

    def run(self, report: OnStep | None = None) -> TrainingState:
        """Train to the end, or until PGD accuracy collapses.

        Raises:
            DentError: the loss became NaN or infinite.
            RecordError: the folder cannot be written to.
        """
        self._trim_metrics()
        saved = time.monotonic()
        order = self._order(self.state.step // self.steps_per_epoch)
        while self.state.step < self.steps and not self.state.stopped:
            epoch, within = divmod(self.state.step, self.steps_per_epoch)
            if not within:
                order = self._order(epoch)
            self._step(order, within)
            if within + 1 == self.steps_per_epoch:
                self._end_epoch(epoch + 1)
            if within + 1 == self.steps_per_epoch or self._agree(
                time.monotonic() - saved > CHECKPOINT_SECONDS
            ):
                self._save()
                saved = time.monotonic()
            if report:
                report(self._progress())
        if self._accelerator.is_main_process:
            write_weights(self.folder / LAST, self.state.measured)
        return self.state

    def _order_buckets(self) -> None:
        """Let DistributedDataParallel order its buckets of gradients before the first step.

        It orders them anew after its first backward pass, and sums over three or more processes are
        rounded differently in another order. So the first step after a resume would differ.
        """
        before = [(buffer, buffer.clone()) for buffer in self.state.model.buffers()]
        images, _ = self._train.batch([0, 0])
        with self._accelerator.autocast():
            logits = self._wrapped(images.to(self._accelerator.device))
        logits.float().sum().backward()
        self._optimizer.zero_grad()
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)

    def _order(self, epoch: int) -> Tensor:
        draws = torch.Generator().manual_seed(seed_of(self.spec.seed, "order", epoch))
        return torch.randperm(self.spec.used, generator=draws)

    def _step(self, order: Tensor, within: int) -> None:
        state, recipe = self.state, self.recipe
        size = min(recipe.batch_size, len(order))
        own_indices = order[within * size : (within + 1) * size]
        own_indices = own_indices[self._accelerator.process_index :: self.spec.processes]
        # The step's number seeds every draw of the step, so a resumed step draws the same.
        torch.manual_seed(
            seed_of(self.spec.seed, "step", state.step, self._accelerator.process_index)
        )
        images, labels = self._train.batch(self._positions[own_indices].tolist())
        x = augment(images.to(self._accelerator.device), pad=recipe.pad, flip=recipe.flip)
        x = x.contiguous(memory_format=torch.channels_last)
        y = labels.to(self._accelerator.device)
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.learning_rate(state.step, self.steps_per_epoch)
        with self._accelerator.autocast():
            loss, correct = training_loss(self._wrapped, x, y, recipe, state.model)
        self._optimizer.zero_grad()
        self._accelerator.backward(loss)
        self._optimizer.step()
        if state.average is not None:
            state.average.update_parameters(state.model)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DentError(
                f"the loss became {value} at step {state.step} of {self.steps}: lower the learning "
                f"rate (now at most {recipe.lr:g}), or train in float32 (--precision no)."
            )
        state.loss += value
        state.correct += int(correct)
        state.step += 1
        self._means = (state.loss / (within + 1), state.correct / ((within + 1) * len(own_indices)))

    def _end_epoch(self, epoch: int) -> None:
        state, threat, total = self.state, self.recipe.threat, self.spec.watched
        watched = self._measure(threat)
        self._watched = watched
        robust = watched.robust
        has_collapsed = threat is not None and collapsed(robust, state.best, total)
        if robust > state.best:
            state.best, state.best_epoch = robust, epoch
            if self._accelerator.is_main_process:
                write_weights(self.folder / BEST, state.measured)
        if has_collapsed:
            state.stopped = (
                f"catastrophic overfitting: accuracy under PGD-{self.spec.watch_steps} fell from "
                f"{state.best} to {robust} of {counted(total, 'watched image')} in epoch {epoch}"
            )
        self._log(epoch, watched, catastrophic=has_collapsed)
        state.loss, state.correct = 0.0, 0

    def _measure(self, threat: ThreatModel | None) -> Watched:
        """Measure in the main process only, because each process has its own statistics."""
        measured = [
            measure(
                self.state.measured,
                self._watch,
                self._watched_positions,
                threat,
                PGD(iterations=self.spec.watch_steps) if threat else None,
                device=self._accelerator.device,
                seed=seed_of(self.spec.seed, "watch"),
            )
            if self._accelerator.is_main_process
            else None
        ]
        (watched,) = share(measured)
        if watched is None:
            raise DentError("the main process sent no measurement: it probably failed")
        return watched

    def _log(self, epoch: int, watched: Watched, *, catastrophic: bool) -> None:
        state = self.state
        sums = torch.tensor([state.loss, state.correct], dtype=torch.float64)
        device = self._accelerator.device
        sums = sums.to(widest(device)).to(device)
        loss, correct = self._accelerator.reduce(sums).tolist()
        trained_total = self.steps_per_epoch * min(self.recipe.batch_size, self.spec.used)
        now = time.monotonic()
        state.seconds, self._began = state.seconds + now - self._began, now
        line = {
            "epoch": epoch,
            "step": state.step,
            "lr": self.recipe.learning_rate(state.step - 1, self.steps_per_epoch),
            "loss": loss / self.steps_per_epoch / self.spec.processes,
            "trained_correct": int(correct),
            "trained_total": trained_total,
            "watched_total": watched.total,
            "watched_natural": watched.natural,
            "watched_robust": watched.robust if self.recipe.threat else None,
            "catastrophic_overfitting": catastrophic,
            "timing": {"seconds": round(state.seconds, 3)},
        }
        state.metrics += 1
        if self._accelerator.is_main_process:
            _append(self.folder / METRICS, line)

    def _agree(self, is_due: bool) -> bool:
        """Return the main process's decision: saving waits for all, so clocks must not differ."""
        return bool(share([is_due])[0]) if self.spec.processes > 1 else is_due

    def _save(self) -> None:
        now = time.monotonic()
        self.state.seconds, self._began = self.state.seconds + now - self._began, now
        _, *others = gather(self.state.own_part())
        if self._accelerator.is_main_process:
            self.state.save(self.folder, self.spec.identity, others)
        self._accelerator.wait_for_everyone()

    def _trim_metrics(self) -> None:
        """Drop the lines of epochs that ended after the last checkpoint and are trained again."""
        path = self.folder / METRICS
        if not self._accelerator.is_main_process or not is_there(path):
            return
        lines = read(path).splitlines(keepends=True)[: self.state.metrics]
        with writing(path), os.fdopen(open_regular(path, os.O_RDWR, in_place=True), "r+b") as file:
            file.truncate(sum(map(len, lines)))

    def _progress(self) -> TrainingProgress:
        state = self.state
        return TrainingProgress(
            step=state.step,
            steps=self.steps,
            epoch=min(state.step // self.steps_per_epoch + 1, self.recipe.epochs),
            epochs=self.recipe.epochs,
            loss=self._means[0],
            accuracy=self._means[1],
            watched=self._watched,
        )


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics of a training run, one dict per epoch."""
    text = read(folder / METRICS).decode() if is_there(folder / METRICS) else ""
    return [json.loads(line) for line in text.splitlines()]


def _prepared(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.SGD
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the model and the optimizer for training, but let the model compute as it is.

    accelerate would wrap its `forward` in autocast, so that accuracies would be measured in the
    precision of training. The steps of training enter autocast themselves.
    """
    own = vars(model).get("forward")  # of the instance; usually only the class has one
    wrapped, prepared = accelerator.prepare(model, optimizer)
    vars(model).pop("forward", None)
    if own is not None:
        model.forward = own
    return wrapped, prepared


def _sgd(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


def _append(path: Path, line: dict[str, Any]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with writing(path), os.fdopen(open_regular(path, flags, in_place=True), "ab", 0) as file:
        write_all(file.fileno(), (json.dumps(line, allow_nan=False) + "\n").encode())
