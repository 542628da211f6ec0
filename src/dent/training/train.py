"""Train in a folder: check everything first, and resume an earlier session."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from dent import models
from dent.data import ImageDataset
from dent.data.class_order import is_in_class_order
from dent.data.dataset import check_attributes
from dent.errors import ConfigError
from dent.evaluation.records.plan import seed_of
from dent.evaluation.records.provenance import new_session
from dent.storage.disk import (
    is_there,
    read,
    remove_temporaries,
    write_atomically,
    writing,
)
from dent.storage.errors import RecordError, SpecMismatchError
from dent.storage.lock import HOLDER, LOCK, FolderLock
from dent.storage.plain_json import parse
from dent.support.checks import check_counts
from dent.support.devices import device_of
from dent.support.factories import type_name
from dent.training.loop import (
    BEST,
    LAST,
    CatastrophicOverfittingWarning,
    OnStep,
    Training,
    read_metrics,
)
from dent.training.recipe import Recipe
from dent.training.spec import DataIdentity, TrainingSpec

if TYPE_CHECKING:
    from accelerate import Accelerator

RUN: Final = "run.json"
WATCHED: Final = 512


@dataclass(frozen=True)
class TrainingResult:
    """The files and metrics of a finished training run.

    Attributes:
        spec: the identity of the run.
        folder: the folder of everything below.
        last: file of the weights after the last step.
        best: file of the weights with the best PGD accuracy (for nominal training, clean accuracy)
            on the watched images.
        best_epoch: the epoch of the best weights.
        metrics: one dict per epoch.
        stopped: why training ended early; "" if it did not.
        seconds: training time over all sessions.
    """

    spec: TrainingSpec
    folder: Path
    last: Path
    best: Path
    best_epoch: int
    metrics: list[dict[str, Any]]
    stopped: str
    seconds: float


def train(
    architecture: str,
    recipe: Recipe,
    data: ImageDataset,
    watch: ImageDataset,
    folder: str | os.PathLike[str],
    accelerator: Accelerator,
    *,
    n: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    watched: int = WATCHED,
    watch_steps: int = 10,
    seed: int = 0,
    progress: OnStep | None = None,
) -> TrainingResult:
    """Train a model, or resume the run in the folder.

    With the same kind of processor and number of threads, a run that was killed and resumed ends
    with the same weights as an uninterrupted run.

    Args:
        architecture: a family name such as "resnet-14-2", or `package.module:factory`.
        recipe: the training recipe.
        data: the training set.
        watch: the dataset whose last `watched` images are measured after every epoch. If one of
            the datasets is in the order of its classes, images are drawn instead of first or last.
        folder: the folder of the run, created if missing; it must be empty or hold this same run.
        accelerator: from `engine.accelerator`.
        n: train only on the first (or drawn) n images, or on all if there are fewer; on all by
            default.
        weights: file of the weights to start from; by default, they are drawn from the seed.
        watched: number of watched images, limited to the size of `watch`.
        watch_steps: PGD steps of the attack on the watched images.
        seed: seed of every random draw.
        progress: called after every step.

    Raises:
        ConfigError: arguments contradict each other or the data, or are of another type.
        SpecMismatchError: the folder holds another run.
        LockedError: another process trains in the folder.
        RecordError: the folder cannot be read or written.
        WeightsError: the weights to start from cannot be read, or do not fit.
    """
    _check_types(architecture, recipe, accelerator, data=data, watch=watch)
    check_counts(1, watched=watched, watch_steps=watch_steps, **({} if n is None else {"n": n}))
    check_counts(0, seed=seed)
    folder = Path(folder).expanduser()
    weights = None if weights is None else Path(weights).expanduser()
    if len(data) == 0:
        raise ConfigError(f"{data.name} has no images to train on.")
    if data.classes != watch.classes:
        raise ConfigError(
            f"{data.name} has the classes {', '.join(data.classes)}, but the watched {watch.name} "
            f"has {', '.join(watch.classes)}: they must be the same, in the same order."
        )
    torch.manual_seed(seed_of(seed, "initial weights"))
    model = models.build(architecture, len(data.classes), weights=weights)
    sample, _ = data.batch(range(min(2, len(data))))
    models.check_model(model.eval(), len(data.classes), sample.to(device_of(model)))
    if recipe.threat is not None:
        recipe.threat.check_reach(sample.shape[1:], warn=True)
    spec = TrainingSpec(
        model=architecture,
        initial=models.weights_digest(model),
        started_from=None if weights is None else weights.name,
        recipe=recipe.to_dict(),
        train=_identity(data),
        used=len(data) if n is None else min(n, len(data)),
        watch=_identity(watch),
        watched=min(watched, len(watch)),
        watch_steps=watch_steps,
        seed=seed,
        precision=accelerator.mixed_precision,
        processes=accelerator.num_processes,
        drawn=is_in_class_order(data) or is_in_class_order(watch),
    )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        return _run(spec, model, data, watch, accelerator, folder, progress)
    with FolderLock(folder):
        _claim(spec, folder, accelerator.device)
        accelerator.wait_for_everyone()
        return _run(spec, model, data, watch, accelerator, folder, progress)


def _check_types(
    architecture: object, recipe: object, accelerator: object, **datasets: object
) -> None:
    """Refuse objects of other kinds, which would fail later with an error of Python's.

    Raises:
        ConfigError: there is such an object; the message says how to make the right one.
        InputError: a dataset lacks an attribute.
    """
    if not isinstance(architecture, str):
        raise ConfigError(
            "a model to train is named, such as 'resnet-14-2' or 'package.module:factory', so that "
            f"the card can say how to make it, got {type_name(architecture)}"
        )
    if not isinstance(recipe, Recipe):
        raise ConfigError(
            "recipe must be a Recipe, such as dent.training.named('fast', 'linf'), got "
            f"{type_name(recipe)}"
        )
    for name, dataset in datasets.items():
        if not isinstance(dataset, ImageDataset):
            raise ConfigError(
                f"{name} must be a dent.data.ImageDataset, such as dent.data.load('cifar10', "
                f"'train') or a dent.data.ArrayDataset, got {type_name(dataset)}"
            )
        check_attributes(dataset)
    if not hasattr(accelerator, "mixed_precision"):
        raise ConfigError(
            f"accelerator must be dent.training.accelerator(), got {type_name(accelerator)}"
        )


def _run(
    spec: TrainingSpec,
    model: torch.nn.Module,
    data: ImageDataset,
    watch: ImageDataset,
    accelerator: Accelerator,
    folder: Path,
    progress: OnStep | None,
) -> TrainingResult:
    state = Training(spec, model, data, watch, accelerator, folder).run(progress)
    if state.stopped:
        warnings.warn(
            f"Training was stopped by {state.stopped}. The weights of epoch {state.best_epoch} "
            f"are kept in {folder / BEST}. More noise (--noise), a smaller step (--step-size), or "
            "an adversarial recipe with several steps avoids it.",
            CatastrophicOverfittingWarning,
            stacklevel=3,
        )
    return TrainingResult(
        spec=spec,
        folder=folder,
        last=folder / LAST,
        best=folder / BEST,
        best_epoch=state.best_epoch,
        metrics=read_metrics(folder),
        stopped=state.stopped,
        seconds=state.seconds,
    )


def read_spec(folder: Path) -> TrainingSpec:
    """Return the spec of the training run in a folder.

    Raises:
        RecordError: there is no spec, or it cannot be read.
    """
    path = folder / RUN
    try:
        values = parse(read(path))
        return TrainingSpec.read(values["spec"], str(path))
    except (RecordError, ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{path} has no training that can be read: {error}. What to do: restore it from a "
            "copy, or train into another folder"
        ) from error


def _claim(spec: TrainingSpec, folder: Path, device: torch.device) -> None:
    """Claim a folder for this run, or check that it already belongs to this run."""
    path = folder / RUN
    sittings = []
    with writing(folder):
        remove_temporaries(folder)
    if is_there(path):
        theirs = read_spec(folder)
        if differences := spec.differences(theirs):
            raise SpecMismatchError(
                f"{folder} has another training:\n  " + "\n  ".join(differences) + "\nChoose "
                "another folder (--out), or use the same settings to resume this one.",
                differences,
            )
        sittings = parse(read(path)).get("sittings", [])
    elif any(entry.name not in (LOCK, HOLDER) for entry in folder.iterdir()):
        raise RecordError(f"{folder} contains other files: choose a folder that is new or empty.")
    sittings.append(new_session(device).to_json())
    content = {
        "kind": "training",
        "identity": spec.identity,
        "spec": spec.to_json(),
        "sittings": sittings,
    }
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _identity(data: ImageDataset) -> DataIdentity:
    return DataIdentity(
        name=data.name, digest=data.digest, images=len(data), classes=len(data.classes)
    )
