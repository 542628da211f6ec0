"""The extra attacks of the full diagnostics, on a few members of the first batch."""

from typing import Any

from torch import Tensor

from dent.attacks import PGD, Attack, AutoAttack, Defense
from dent.evaluation.plan import seed_of
from dent.evaluation.records import FollowUp
from dent.evaluation.serving import reset, serve
from dent.threat import ThreatModel

_HUGE_ITERATIONS = 20


def huge_eps(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> FollowUp:
    """Attack with an eps at which any image can become any other.

    Whoever still answers right then hides its gradient, or the attack is broken.
    """
    low, high = threat.bounds
    pixels = x[0].numel()
    eps = {"linf": 1.0, "l2": pixels**0.5, "l1": float(pixels)}[threat.norm] * (high - low)
    attack = PGD(iterations=_HUGE_ITERATIONS, step=0.1)
    return _attack(defense, attack, x, y, ThreatModel(threat.norm, eps, threat.bounds), seed)


def more_iterations(
    defense: Defense, attack: Attack, x: Tensor, y: Tensor, threat: ThreatModel, seed: int
) -> FollowUp | None:
    """Attack with the iterations as they are, and with twice as many; None if it has none."""
    longer = _longer(attack, threat)
    if longer is None:
        return None
    before = _attack(defense, attack, x, y, threat, seed)
    return _attack(defense, longer, x, y, threat, seed).model_copy(
        update={"before": before.correct}
    )


def _attack(
    defense: Defense, attack: Attack, x: Tensor, y: Tensor, threat: ThreatModel, seed: int
) -> FollowUp:
    reset(defense)
    found = attack(defense, x, y, threat, seed=seed_of(seed, "attack"))
    reset(defense)
    served = serve(defense, found.adversarial, seed=seed_of(seed, "serve"))
    right = sum(at == label for at, label in zip(served.predictions, y.tolist(), strict=True))
    return FollowUp(attack=attack.name, total=len(y), correct=right, before=None)


def _longer(attack: Attack, threat: ThreatModel) -> Attack | None:
    """The same attack with twice the iterations; None where that is no single attack by steps."""
    if isinstance(attack, PGD):
        settings: dict[str, Any] = attack.settings()
        return PGD(**{**settings, "iterations": 2 * attack.iterations}, name=attack.name)
    if isinstance(attack, AutoAttack) and attack.protocol == "frozen":
        parts = attack.parts(threat.norm)
        if len(parts) == 1 and parts[0].name != "square":
            part = parts[0].settings()
            part["iterations"] = 2 * int(part["iterations"])
            kept = {key: part.get(key) for key in ("iterations", "restarts", "targets", "rho")}
            return AutoAttack(parts[0].name, **{k: v for k, v in kept.items() if v})
    return None
