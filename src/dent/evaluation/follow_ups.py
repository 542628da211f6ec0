"""The extra attacks of the full diagnostics, on a few members of the first batch."""

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from dent.attacks import PGD, Attack, Defense, Queries
from dent.evaluation.plan import seed_of
from dent.evaluation.records import FollowUp
from dent.evaluation.serving import reset, serve
from dent.threat import Norm, ThreatModel

_HUGE: Final = PGD(iterations=20, step=0.1)


def huge_eps(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> FollowUp:
    """Attack with an eps at which any image can become any other.

    Whoever still answers right then hides its gradient, or the attack is broken.
    """
    low, high = threat.bounds
    pixels = x[0].numel()
    eps = {"linf": 1.0, "l2": pixels**0.5, "l1": float(pixels)}[threat.norm] * (high - low)
    return _attack(defense, _HUGE, x, y, ThreatModel(threat.norm, eps, threat.bounds), seed)


def more_iterations(
    defense: Defense, attack: Attack, x: Tensor, y: Tensor, threat: ThreatModel, seed: int
) -> FollowUp | None:
    """Attack with the iterations as they are, and with twice as many; None if it has none."""
    longer = attack.longer(threat.norm)
    if longer is None:
        return None
    before = _attack(defense, attack, x, y, threat, seed)
    return _attack(defense, longer, x, y, threat, seed).model_copy(
        update={"before": before.correct}
    )


def passes(attacks: Sequence[Attack], classes: int, norm: Norm, size: int) -> Queries:
    """What all follow-ups together ask of a defense at most, in passes of `size` members."""
    total = _HUGE.passes(classes, norm, size) + Queries(1, 0)
    for attack in attacks:
        longer = attack.longer(norm)
        if longer is not None:
            for each in (attack, longer):
                total = total + each.passes(classes, norm, size) + Queries(1, 0)
    return total


def _attack(
    defense: Defense, attack: Attack, x: Tensor, y: Tensor, threat: ThreatModel, seed: int
) -> FollowUp:
    reset(defense)
    found = attack(defense, x, y, threat, seed=seed_of(seed, "attack"))
    reset(defense)
    served = serve(defense, found.adversarial, seed=seed_of(seed, "serve"))
    right = sum(at == label for at, label in zip(served.predictions, y.tolist(), strict=True))
    return FollowUp(attack=attack.name, total=len(y), correct=right, before=None)
