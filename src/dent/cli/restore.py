"""Restore the objects that a record describes, so that one command can check the record."""

from pathlib import Path
from typing import Any

import torch

from dent import defenses as reference
from dent.attacks import Attack, Defense, from_factory
from dent.cli import resolve
from dent.config import DentConfig
from dent.defenses.dent import Dent
from dent.errors import ConfigError
from dent.evaluation import RecordedRun, Subject
from dent.evaluation.attack_specs import attack_of, attack_spec, is_ours
from dent.evaluation.records.spec import STATIC, AttackSpec, DefenseSpec
from dent.evaluation.subject import threat_of
from dent.kinds import recorded_kind
from dent.performance import Performance
from dent.threat import ThreatModel


def subject(
    recorded: RecordedRun, weights: Path | None, root: Path | None, device: str | None
) -> Subject:
    """Restore what a run evaluated, from the recorded names and settings.

    Args:
        recorded: The run.
        weights: The model's weights file, if the record's model needs one.
        root: Folder of datasets.
        device: The device to compute on. The run's sessions name the devices that it used.

    Raises:
        DentError: Something is missing here, or cannot be restored from the record.
    """
    spec = recorded.run.spec
    is_factory = ":" in spec.dataset.name
    images = resolve.dataset(spec.dataset.name, None if is_factory else root)
    model = resolve.model(spec.model.name, weights, images, resolve.device(device))
    threat = threat_of(spec.threat)
    return Subject(
        model=model,
        dataset=images,
        defenses=dict(
            _defense(defense, model) for defense in spec.defenses if defense.name != STATIC
        ),
        attacks=tuple(_attack(attack, threat, spec.settings.batch_size) for attack in spec.attacks),
        threat=threat,
        model_name=spec.model.name,
    )


def _defense(spec: DefenseSpec, model: torch.nn.Module) -> tuple[str, Defense]:
    settings: Any = spec.config.get("settings")
    is_factory = ":" in spec.name
    if not is_factory and spec.kind == recorded_kind("dent"):
        precision: Any = spec.config.get("precision", "model")
        performance = Performance(precision=precision)
        return spec.name, Dent(model, DentConfig.from_dict(settings), performance)
    # A record may name built-in defenses and, if allowed, code, but never a file.
    if spec.name in reference.names() or (is_factory and not spec.name.lower().endswith(".json")):
        return spec.name, reference.make(spec.name, model)
    raise ConfigError(
        f"the defense {spec.name!r} ({spec.kind}) cannot be restored from its record: expected "
        f"one of {', '.join(reference.names())}, a configuration of Dent, or module:factory"
    )


def _attack(spec: AttackSpec, threat: ThreatModel, batch_size: int) -> Attack:
    is_factory = not is_ours(spec) and ":" in spec.name
    attack = from_factory(spec.name).sized(batch_size) if is_factory else attack_of(spec)
    if attack_spec(attack, threat) != spec:
        raise ConfigError(
            f"the attack {spec.name!r} differs in this version: verify the run with the versions "
            f"that made it. Recorded: {spec.attack}, {spec.settings}, {spec.versions}"
        )
    return attack
