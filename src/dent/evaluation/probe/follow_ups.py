"""The extra attacks of the diagnostics, on the first batch."""

from collections.abc import Iterator, Sequence
from typing import Final

from torch import Tensor

from dent.attacks import PGD, Attack, Queries
from dent.attacks.adaptive import AdaptiveAPGD
from dent.evaluation.records.plan import seed_of
from dent.evaluation.records.schema import FollowUp
from dent.evaluation.records.spec import EvaluationSpec
from dent.evaluation.submission.fresh import Origin, fresh
from dent.evaluation.submission.submission import submit
from dent.threat import Norm, ThreatModel

_HUGE: Final = (
    PGD(iterations=20, step=0.1),
    # Where the cross-entropy saturates, or a huge step leaps over what is wrong.
    AdaptiveAPGD("stop-gradient", losses=("margin",), iterations=20, unmask=True),
    AdaptiveAPGD("stop-gradient", losses=("margin",), iterations=40, targets=1),
    AdaptiveAPGD("unrolled", losses=("margin",), iterations=20),
)
"""In turn, until nobody is right any more."""


def huge_eps(origin: Origin, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> FollowUp:
    """Attack with an eps at which any image can become any other.

    Who still answers right under every attack hides its gradient, or the attacks are broken. What
    is recorded is the one that left fewest right.
    """
    low, high = threat.bounds
    pixels = x[0].numel()
    eps = {"linf": 1.0, "l2": pixels**0.5, "l1": float(pixels)}[threat.norm] * (high - low)
    wide = ThreatModel(threat.norm, eps, threat.bounds)
    found: list[FollowUp] = []
    for attack in _HUGE:
        found.append(_attack(origin, attack, x, y, wide, seed))
        if not found[-1].correct:
            break
    return min(found, key=lambda each: each.correct)


def huge_passes(spec: EvaluationSpec) -> Queries:
    """What that asks of a defense that falls to the first attack, in passes of its batch."""
    return _HUGE[0].passes(len(spec.dataset.classes), spec.threat.norm, 1) + Queries(1, 0)


def more_iterations(
    origin: Origin, attack: Attack, x: Tensor, y: Tensor, threat: ThreatModel, seed: int
) -> FollowUp | None:
    """Attack with the iterations as they are, and with twice as many; None if it has none."""
    longer = attack.longer(threat.norm)
    if longer is None:
        return None
    before = _attack(origin, attack, x, y, threat, seed)
    return _attack(origin, longer, x, y, threat, seed).model_copy(update={"before": before.correct})


def passes(attacks: Sequence[Attack], classes: int, norm: Norm, size: int) -> Queries:
    """What `more_iterations` of all attacks asks at most, in passes of `size` members."""
    total = Queries(0, 0)
    for attack in attacks:
        for each in _both(attack, norm):
            total = total + each.passes(classes, norm, size) + Queries(1, 0)
    return total


def _both(attack: Attack, norm: Norm) -> Iterator[Attack]:
    longer = attack.longer(norm)
    if longer is not None:
        yield attack
        yield longer


def _attack(
    origin: Origin, attack: Attack, x: Tensor, y: Tensor, threat: ThreatModel, seed: int
) -> FollowUp:
    found = attack(fresh(origin, seed), x, y, threat, seed=seed_of(seed, "attack"))
    asked = origin.new(seed_of(seed, "serve"))
    submission = submit(asked.defense, found.adversarial, seed=seed_of(seed, "serve"))
    right = sum(at == label for at, label in zip(submission.predictions, y.tolist(), strict=True))
    return FollowUp(attack=attack.name, total=len(y), correct=right, before=None)
