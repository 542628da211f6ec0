"""The extra attacks of the diagnostics, on members of the first batch."""

from collections.abc import Iterator, Sequence
from typing import Final

from torch import Tensor

from dent.attacks import PGD, Attack, Queries
from dent.attacks.adaptive import AdaptiveAPGD
from dent.attacks.querier import NoGradientError
from dent.evaluation.records.plan import seed_of
from dent.evaluation.records.schema import FollowUp
from dent.evaluation.records.spec import EvaluationSpec
from dent.evaluation.submission.fresh import Origin, fresh
from dent.evaluation.submission.submission import submit
from dent.threat import Norm, ThreatModel

_HUGE: Final = (
    PGD(iterations=20, step=0.1),
    # For defenses with a saturated cross-entropy, or if large steps overshoot the wrong class.
    AdaptiveAPGD("stop-gradient", losses=("margin",), iterations=20, unmask=True),
    AdaptiveAPGD("stop-gradient", losses=("margin",), iterations=40, targets=1),
    AdaptiveAPGD("unrolled", losses=("margin",), iterations=20),
)
"""The attacks with a huge eps. They run in this order, until no member is correct."""


def huge_eps(origin: Origin, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> FollowUp:
    """Attack with an eps so large that any image can become any other.

    If a defense is still correct under every attack, it hides its gradient, or the attacks are
    broken. If an attack finds no gradient, the natural images are submitted.

    Args:
        origin: The defense before its first query.
        x: Natural images, (N, C, H, W).
        y: Labels, int64 (N,).
        threat: The threat model, whose eps is replaced.
        seed: Seed of the attacks.

    Returns:
        The outcome of the attack that left the fewest members correct.
    """
    low, high = threat.bounds
    pixels = x[0].numel()
    eps = {"linf": 1.0, "l2": pixels**0.5, "l1": float(pixels)}[threat.norm] * (high - low)
    wide = ThreatModel(threat.norm, eps, threat.bounds)
    follow_ups: list[FollowUp] = []
    for attack in _HUGE:
        try:
            follow_ups.append(_attack(origin, attack, x, y, wide, seed))
        except NoGradientError:
            follow_ups.append(_submitted(origin, attack, x, y, seed))
        if not follow_ups[-1].correct:
            break
    return min(follow_ups, key=lambda follow_up: follow_up.correct)


def huge_passes(spec: EvaluationSpec) -> Queries:
    """Return the number of passes of `huge_eps`, if its first attack fools every member."""
    return _HUGE[0].passes(len(spec.dataset.classes), spec.threat.norm, 1) + Queries(1, 0)


def more_iterations(
    origin: Origin, attack: Attack, x: Tensor, y: Tensor, threat: ThreatModel, seed: int
) -> FollowUp | None:
    """Attack with the given number of iterations and with twice as many.

    Args:
        origin: The defense before its first query.
        attack: The attack.
        x: Natural images, (N, C, H, W).
        y: Labels, int64 (N,).
        threat: The threat model.
        seed: Seed of both attacks.

    Returns:
        The outcome of both; None if the attack has no iterations or finds no gradient.
    """
    longer = attack.longer(threat.norm)
    if longer is None:
        return None
    try:
        before = _attack(origin, attack, x, y, threat, seed)
        after = _attack(origin, longer, x, y, threat, seed)
    except NoGradientError:
        return None
    return after.model_copy(update={"before": before.correct})


def passes(attacks: Sequence[Attack], num_classes: int, norm: Norm, size: int) -> Queries:
    """Return the maximum passes of `more_iterations` for all attacks, with `size` members."""
    total = Queries(0, 0)
    for attack in attacks:
        for variant in _both_lengths(attack, norm):
            total = total + variant.passes(num_classes, norm, size) + Queries(1, 0)
    return total


def _both_lengths(attack: Attack, norm: Norm) -> Iterator[Attack]:
    longer = attack.longer(norm)
    if longer is not None:
        yield attack
        yield longer


def _attack(
    origin: Origin, attack: Attack, x: Tensor, y: Tensor, threat: ThreatModel, seed: int
) -> FollowUp:
    result = attack(fresh(origin, seed), x, y, threat, seed=seed_of(seed, "attack"))
    return _submitted(origin, attack, result.adversarial, y, seed)


def _submitted(origin: Origin, attack: Attack, images: Tensor, y: Tensor, seed: int) -> FollowUp:
    instance = origin.new(seed_of(seed, "serve"))
    submission = submit(instance.defense, images, seed=seed_of(seed, "serve"))
    correct = sum(
        predicted == label
        for predicted, label in zip(submission.predictions, y.tolist(), strict=True)
    )
    return FollowUp(attack=attack.name, total=len(y), correct=correct, before=None)
