"""Restore the objects that a record describes, to submit its batches again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dent import data, models
from dent.attacks import Attack, Defense, from_factory
from dent.config import DentConfig
from dent.data import ImageDataset, OnBytes
from dent.defenses import registry
from dent.defenses.dent import Dent
from dent.errors import ConfigError, DataError, UnknownNameError
from dent.evaluation.attack_specs import attack_of, attack_spec, is_ours, named_code
from dent.evaluation.records.spec import STATIC, AttackSpec, DefenseSpec
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.subject import Subject, threat_of
from dent.kinds import recorded_kind
from dent.performance import Performance
from dent.support.devices import usable_device
from dent.threat import ThreatModel


def restore(
    recorded: RecordedRun,
    *,
    weights: str | os.PathLike[str] | None = None,
    data_root: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    allow_code: bool = False,
    progress: bool | OnBytes = True,
) -> Subject:
    """Restore what a run evaluated, from the recorded names and settings.

    `dent.evaluation.verify` compares the restored objects with the digests in the record.

    Args:
        recorded: The run, from `dent.evaluation.load_run`.
        weights: The model's weights file, if the record's model needs one.
        data_root: Folder of datasets, as in `dent.data.load`. A dataset of a factory does not use
            it.
        device: The device to compute on; without one, the GPU if there is one. The run's sessions
            name the devices that it used.
        allow_code: Import and call the `module:factory` names that the run records. Allow it only
            if you trust that code.
        progress: The progress of a download, as in `dent.data.load`.

    Raises:
        ConfigError: The run names code that is not allowed, there is no such device, or the model,
            the dataset, a defense or an attack cannot be restored from its record.
        DentError: The model or the dataset is missing here, or does not fit the record.
    """
    spec = recorded.run.spec
    code_names = named_code(spec)
    if code_names and not allow_code:
        raise ConfigError(
            f"To restore what {recorded.path} evaluated, code that its records name must run: "
            f"{', '.join(code_names)}. If you trust that code, add --allow-code (in Python, "
            "allow_code=True). `dent verify --records-only` checks only the records and runs none"
        )
    model, images = restore_base(recorded, data_root, device, weights=weights, progress=progress)
    threat = threat_of(spec.threat)
    return Subject(
        model=model,
        dataset=images,
        defenses={
            defense.name: restored_defense(defense, model)
            for defense in spec.defenses
            if defense.name != STATIC
        },
        attacks=tuple(
            _restored_attack(attack, threat, spec.settings.batch_size) for attack in spec.attacks
        ),
        threat=threat,
        model_name=spec.model.name,
    )


def restore_base(
    recorded: RecordedRun,
    data_root: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    progress: bool | OnBytes = True,
) -> tuple[nn.Module, ImageDataset]:
    """Restore the model and the dataset of a run, without its defenses and attacks.

    The arguments are those of `restore`. If a factory makes the model or the dataset, it is called.

    Raises:
        DentError: The model or the dataset is missing here, or does not fit the record.
    """
    spec = recorded.run.spec
    with _named(recorded, "dataset", spec.dataset.name):
        if ":" in spec.dataset.name:
            images = data.from_factory(spec.dataset.name)
        else:
            images = data.load(spec.dataset.name, root=data_root, progress=progress)
    with _named(recorded, "model", spec.model.name):
        return checked_model(spec.model.name, weights, images, usable_device(device)), images


@contextmanager
def _named(recorded: RecordedRun, what: str, name: str) -> Iterator[None]:
    """Explain a name that nothing has: in a run from Python, it may be the name of an object.

    Names with a colon or a slash can only be of something that is missing here.
    """
    try:
        yield
    except UnknownNameError as error:
        if {":", "/"} & set(name):
            raise
        raise ConfigError(
            f"there is no {what} {name!r} to restore {recorded.path} with. Was the run made in "
            "Python? Then pass the same objects to dent.evaluation.verify or challenge, or record "
            "names that can be loaded (Subject(..., model_name=...)). "
            "`dent verify --records-only` needs no objects"
        ) from error


def checked_model(
    name: str,
    weights: str | os.PathLike[str] | None,
    images: ImageDataset,
    device: torch.device,
) -> nn.Module:
    """Return a model in eval mode with the dataset's classes, checked on two of its images.

    Raises:
        DataError: The dataset is empty.
        InputError: The model does not fit the dataset.
        UnknownNameError, UnsupportedModelError, WeightsError: The model cannot be loaded.
    """
    path = None if weights is None else os.fspath(weights)
    if len(images) == 0:
        raise DataError(f"the dataset {images.name!r} is empty: there is nothing to evaluate")
    loaded = models.load(name, weights=path, num_classes=len(images.classes), device=device)
    sample, _ = images.batch(range(min(2, len(images))))
    models.check_model(loaded, len(images.classes), sample.to(device))
    models.check_class_names(loaded, images.classes)
    return loaded


def restored_defense(spec: DefenseSpec, model: nn.Module) -> Defense:
    """Return the defense that a record describes, around a model.

    Raises:
        ConfigError: The record describes neither a built-in defense, a `Dent`, nor a factory.
    """
    settings: Any = spec.config.get("settings")
    is_factory = ":" in spec.name
    if not is_factory and spec.kind == recorded_kind("dent"):
        precision: Any = spec.config.get("precision", "model")
        performance = Performance(precision=precision)
        return Dent(model, DentConfig.from_dict(settings), performance)
    # A record may name built-in defenses and, if allowed, code, but never a file.
    if spec.name in registry.names() or (is_factory and not spec.name.lower().endswith(".json")):
        return registry.make(spec.name, model)
    raise ConfigError(
        f"the defense {spec.name!r} ({spec.kind}) cannot be restored from its record: expected "
        f"one of {', '.join(registry.names())}, a configuration of Dent, or module:factory"
    )


def _restored_attack(spec: AttackSpec, threat: ThreatModel, batch_size: int) -> Attack:
    is_factory = not is_ours(spec) and ":" in spec.name
    attack = from_factory(spec.name).sized(batch_size) if is_factory else attack_of(spec)
    if attack_spec(attack, threat) != spec:
        raise ConfigError(
            f"the attack {spec.name!r} differs in this version: verify the run with the versions "
            f"that made it. Recorded: {spec.attack}, {spec.settings}, {spec.versions}"
        )
    return attack
