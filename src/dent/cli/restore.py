"""From a record back to objects, so that a stranger can check it with one command."""

from pathlib import Path
from typing import Any

import torch

from dent import defenses as reference
from dent.attacks import Attack, Defense
from dent.cli import resolve
from dent.config import DentConfig
from dent.defenses.dent import Dent
from dent.errors import ConfigError
from dent.evaluation import RecordedRun, Settings, Subject, suite
from dent.evaluation.records.spec import STATIC, AttackSpec, DefenseSpec, EvaluationSpec
from dent.evaluation.subject import attack_spec, threat_of
from dent.evaluation.suites import exactly
from dent.kinds import recorded_kind
from dent.performance import Performance
from dent.threat import ThreatModel


def named_code(spec: EvaluationSpec) -> tuple[str, ...]:
    """The `module:factory` names in a record, which to restore is to import and call."""
    names = (spec.model.name, *(each.name for each in spec.defenses))
    return tuple(name for name in names if ":" in name)


def subject(
    recorded: RecordedRun, weights: Path | None, root: Path | None, device: str | None
) -> Subject:
    """Return what a run evaluated, made anew from the names and settings it recorded.

    Args:
        recorded: The run.
        weights: The model's weights file, where the record's model needs one.
        root: Folder of datasets.
        device: Where to compute; what was used is in the record's sessions.

    Raises:
        DentError: Something is not here, or cannot be made from the record.
    """
    spec = recorded.run.spec
    images = resolve.dataset(spec.dataset.name, root)
    model = resolve.model(spec.model.name, weights, images, resolve.device(device))
    threat = threat_of(spec.threat)
    return Subject(
        model=model,
        dataset=images,
        defenses=dict(_defense(each, model) for each in spec.defenses if each.name != STATIC),
        attacks=_attacks(spec, threat),
        threat=threat,
        model_name=spec.model.name,
    )


def _defense(spec: DefenseSpec, model: torch.nn.Module) -> tuple[str, Defense]:
    settings: Any = spec.config.get("settings")
    own = ":" in spec.name  # a factory, whatever it made
    if not own and spec.kind == recorded_kind("dent"):
        precision: Any = spec.config.get("precision", "model")
        performance = Performance(precision=precision)
        return spec.name, Dent(model, DentConfig.from_dict(settings), performance)
    # Of names in a record only those of our own, and with leave those of code: never a file's.
    if spec.name in reference.names() or (own and not spec.name.lower().endswith(".json")):
        return spec.name, reference.make(spec.name, model)
    raise ConfigError(
        f"the defense {spec.name!r} ({spec.kind}) cannot be made again from its record: expected "
        f"one of {', '.join(reference.names())}, a configuration of Dent, or module:factory"
    )


def _attacks(spec: EvaluationSpec, threat: ThreatModel) -> tuple[Attack, ...]:
    found = exactly(spec)
    if found is not None:
        name, budget = found
        return suite(name, budget, mixed=spec.settings.mix is not None)
    return tuple(_attack(each, threat, spec.settings) for each in spec.attacks)


def _attack(spec: AttackSpec, threat: ThreatModel, settings: Settings) -> Attack:
    """Find the settings of the command line that give the recorded ones."""
    for iterations in (None, *sorted(_iterations(spec.config))):
        (made,) = resolve.attacks([spec.name], iterations, spec.protocol)
        if attack_spec(made.sized(settings.batch_size), threat) == spec:
            return made
    raise ConfigError(
        f"the attack {spec.name!r} was made in Python with settings that the command line has not, "
        "or with another version of pyautoattack: verify it with dent.evaluation.verify(). "
        f"Recorded: {spec.config}"
    )


def _iterations(value: Any) -> set[int]:
    """Every number of iterations anywhere in a configuration."""
    if isinstance(value, list):
        return set().union(*(_iterations(item) for item in value))
    if not isinstance(value, dict):
        return set()
    found = {v for k, v in value.items() if k == "iterations" and isinstance(v, int)}
    return found.union(*(_iterations(item) for item in value.values()))
