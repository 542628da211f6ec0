"""Convert attacks to their descriptions in records, and back."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

from dent.attacks import Attack
from dent.attacks import make as make_attack
from dent.errors import ConfigError, DentError
from dent.evaluation.records.spec import AttackSpec, EvaluationSpec
from dent.kinds import class_of, is_registered, kind_of
from dent.storage.canonical import canonical
from dent.threat import ThreatModel


def attack_spec(attack: Attack, threat: ThreatModel) -> AttackSpec:
    """Return the description of an attack for records."""
    return AttackSpec(
        name=attack.name,
        attack=attack.registered if is_registered(attack) else None,
        kind=kind_of(attack),
        settings=attack.settings(threat.norm),
        versions=attack.versions,
        protocol="published" if getattr(attack, "protocol", "") == "published" else "frozen",
    )


@cache
def _made(name: str | None, kind: str, settings: str) -> Attack:
    values: dict[str, Any] = json.loads(settings)
    if name is not None:
        return make_attack(name, **values)
    attack_class: Any = class_of(kind)
    attack: Attack = attack_class.from_dict(values)
    return attack


def is_ours(spec: AttackSpec) -> bool:
    """Return whether a recorded attack is part of this package, so its record can restore it."""
    if spec.attack is not None:
        return True
    attack_class = class_of(spec.kind)
    return attack_class is not None and issubclass(attack_class, Attack)


def named_code(spec: EvaluationSpec) -> tuple[str, ...]:
    """Return the `module:factory` names in a record. Restoring it imports and calls them."""
    names = (
        spec.model.name,
        spec.dataset.name,
        *(defense.name for defense in spec.defenses),
        *(attack.name for attack in spec.attacks if not is_ours(attack)),
    )
    return tuple(dict.fromkeys(name for name in names if ":" in name))


def attack_of(spec: AttackSpec) -> Attack:
    """Return the attack that a record describes, under its recorded name.

    Raises:
        ConfigError: The attack is not part of this package, or has settings that this version does
            not know.
    """
    if not is_ours(spec):
        raise ConfigError(
            f"the attack {spec.name!r} ({spec.kind}) is not from this package, so it cannot be "
            "rebuilt from its record"
        )
    try:
        attack = _made(spec.attack, spec.kind, canonical(spec.settings))
        return replace(attack, name=spec.name)
    except (DentError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the attack {spec.name!r} cannot be made from its record ({spec.attack}, "
            f"{spec.settings}): {error}"
        ) from error
