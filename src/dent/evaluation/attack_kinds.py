"""The kind of an attack, according to its record: what it shows about a defense."""

from collections.abc import Collection, Sequence
from typing import Literal

from dent.attacks.autoattack.parts import SETS
from dent.evaluation.records.spec import AttackSpec, EvaluationSpec

AttackKind = Literal["white-box", "black-box", "transfer", "other"]
"""What an attack follows: gradients of the defense (`white-box`), only its answers (`black-box`) or
gradients of other models (`transfer`). `other`: it may follow none of these, because it attacks
with fewer steps, starts from the result of another attack, also queries (AutoAttack's sets), or is
a custom attack."""


def kind_of_attack(attack: AttackSpec, *, on_static: bool = False) -> AttackKind | None:
    """Return the kind of an attack; None for a custom attack.

    Args:
        attack: The attack.
        on_static: Whether it attacks the static model. `adaptive-transfer` is a white-box attack
            there, because it follows the gradients of the static model.
    """
    if attack.attack is None:
        return None
    if attack.attack in ("square", "rays"):
        return "black-box"
    if attack.attack == "surrogates" or (attack.attack == "adaptive-transfer" and not on_static):
        return "transfer"
    weaker = attack.attack == "adaptive-fewer-steps" or attack.settings.get("warm") is True
    return "other" if weaker or _may_query(attack) else "white-box"


def kinds_of_attacks(
    attacks: Sequence[AttackSpec], ran: Collection[str], *, on_static: bool = False
) -> dict[str, AttackKind]:
    """Return the kind of each attack of a run. A custom attack is of the kind `other`.

    If no white-box attack ran, sets and custom attacks count as white-box. Nothing else is then
    known about the gradients of the defense.

    Args:
        attacks: The attacks of a run.
        ran: Names of the attacks that ran on the defense.
        on_static: Whether they attack the static model.
    """
    kinds: dict[str, AttackKind] = {
        attack.name: kind_of_attack(attack, on_static=on_static) or "other" for attack in attacks
    }
    if any(kinds[attack.name] == "white-box" for attack in attacks if attack.name in ran):
        return kinds
    return kinds | {attack.name: "white-box" for attack in attacks if _may_query(attack)}


def _may_query(attack: AttackSpec) -> bool:
    """Return whether an attack may break members by queries as well as by gradients."""
    return attack.attack is None or attack.attack in SETS


def is_black_box(attack: AttackSpec, *, took_gradients: bool) -> bool:
    """Return whether an attack only queries the defense.

    Args:
        attack: The attack.
        took_gradients: Whether the attack computed gradients. This decides only for a custom
            attack, because a gradient attack of the suite computes none if earlier attacks fooled
            all members.
    """
    kind = kind_of_attack(attack)
    return not took_gradients if kind is None else kind == "black-box"


def is_exact(attack: AttackSpec) -> bool:
    """Return whether an attack follows the exact gradient, through all steps of the adaptation."""
    unrolled = attack.attack == "adaptive-unrolled" and not attack.settings.get("smooth_signs")
    return unrolled or attack.settings.get("unrolled") is True


def has_exact_attack(spec: EvaluationSpec) -> bool:
    """Return whether an attack of an evaluation follows the exact gradient."""
    return any(map(is_exact, spec.attacks))


def is_model_space(attack: AttackSpec) -> bool:
    """Return whether an attack targets the models that a defense may adapt to."""
    return attack.attack in ("fpa", "gmsa-avg", "gmsa-min")
