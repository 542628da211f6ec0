"""Check that attacks follow the gradient of the answers that the defense serves.

Only then is an attack white-box. So the check computes the gradient as an attack does: for a whole
batch, in the defense's own precision, at the natural images, at a point that a short attack
reached, and where a long one ended (`every_class`). Then it moves the images. For each member, it
compares the change of the served answers with the change that the gradient predicts:

    exact     In float64, by tiny steps. The float64 gradient must predict the change, and the
              attack's own gradient must point in the same direction.
    coarse    In the defense's own precision, by steps of half and a quarter of eps. This shows how
              useful the gradient is to an attack. A surrogate gradient (straight-through, BPDA) may
              pass. An exact gradient may fail: if the answers have a small ripple, its gradient
              hides the slope over larger steps. It also fails if the scores jump (`jumps`).

Both are also made for the other likely wrong classes, and for pixels with a faint slope
(`other_slopes`).

Every query goes to a fresh copy, so a defense cannot tell the check from an attack.

This is the certificate of the suite's verdict. `dent.attacks.adaptive.certificate` is a simpler
check for use by hand: of one rung, at one batch, for the summed loss.
"""

import copy
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dent.attacks import DynamicDefense, Queries
from dent.attacks.adaptive.apgd import Evaluation, random_start, steepest
from dent.attacks.querier import NoGradientError
from dent.evaluation.probe import jumps
from dent.evaluation.probe.defense_view import (
    AttackPoint,
    DefenseView,
    attack_point,
    best_gradient,
    margin,
    or_zero,
)
from dent.evaluation.probe.every_class import CLASSES, PASSES, attack_every_class
from dent.evaluation.probe.moves import (
    COARSE,
    LINES,
    SHARES,
    STEPS,
    THRESHOLD,
    errors_of,
    finite,
    long_moves,
    short_moves,
)
from dent.evaluation.probe.other_slopes import with_other_slopes
from dent.evaluation.records.plan import seed_of
from dent.evaluation.records.probe_answers import DISTANCE
from dent.evaluation.records.schema import FollowUp, GradientPoint, GradientRecord
from dent.evaluation.submission.fresh import Origin
from dent.evaluation.submission.submission import apart
from dent.support.devices import has_float64, wide
from dent.threat import ThreatModel

CHECKS: Final = 1
"""Version of the checks in this module and those that it calls. Increase it with every check that
is added or made stricter: then records without that check support no claim of a gain."""
_MEMBERS: Final = (2, 4, 4)
"""Number of members to move if the defense is batch-dependent: at the natural images, at the point
of the short attack, and at that of the long one."""
_SHORT: Final = 3
"""Maximum number of steps of the short attack."""
DRAWS: Final = 3
"""Smallest number of submissions over which attacks of a suite average the gradient of a randomized
defense."""


def passes(size: int) -> Queries:
    """Return the maximum number of passes of a batch in the check. One in float64 counts as two.

    If the defense is randomized, an attack in the check takes several times as many.
    """
    exact = sum(_MEMBERS) * (1 + LINES) * 2
    coarse = sum(_MEMBERS) * (1 + 2 * LINES) * 2
    small = jumps.AT_BOUNDARIES + jumps.OVER_TINY_MOVES.times(2)
    points = len(_MEMBERS)
    exact_for = Queries(2 * (CLASSES + LINES * 2 * 2), CLASSES * 2)
    coarse_for = Queries(1 + CLASSES + 2 * len(SHARES) * 2 * LINES * 2, CLASSES)
    small = small + (exact_for + coarse_for).times(points - 1)
    own = Queries(2 * (exact * 2 + points) + coarse + _SHORT + 3, points * 3 + _SHORT)
    return small + PASSES + own


def check_gradient(
    origin: Origin, x: Tensor, y: Tensor, threat: ThreatModel, seed: int, draws: int = DRAWS
) -> GradientRecord:
    """Compare the gradient of a defense with the changes of its served answers.

    Also attack it once more (`every_class`). If it is randomized, this attack follows means of
    gradients, and another such mean must be alike.

    Args:
        origin: The defense before its first query.
        x: A whole batch (N, C, H, W).
        y: The labels of the batch (N,).
        threat: The threat model of the attacks.
        seed: Seed of the directions, the members, and the defense's generators.
        draws: Number of seeds over which attacks average the gradient of a randomized defense.
    """
    defense = origin.defense
    dependent = isinstance(defense, DynamicDefense) and bool(defense.batch_dependent)
    native = DefenseView(origin, x.dtype, dependent, seed)
    rung, _ = best_gradient(defense)
    try:
        natural = attack_point(native, x, y)
        reached = _short_attack(native, natural, threat, seed)
        agreements = [_agreement(native, point, draws) for point in (natural, reached)]
        seeds = 1 if agreements == [None, None] else draws
        ended, rights = _attack_every_class(native, natural, threat, seed, seeds)
        agreements.append(_agreement(native, ended, draws))
    except NoGradientError as missing:  # at the natural images, or during an attack
        return GradientRecord(rung=rung, missing=str(missing))
    finer = _in_double(native, natural)
    attacked = (natural, reached, ended)
    correct = round(float(rights.sum()))
    points = tuple(
        _check_point(native, finer, point, threat, members, seed_of(seed, index))
        for index, (point, members) in enumerate(zip(attacked, _MEMBERS, strict=True))
    )
    if _scores_jump(native, natural, reached, rights > 0.5, threat, seed):
        points = tuple(
            point.model_copy(update={"coarse": (None,) * point.members}) for point in points
        )
    others = with_other_slopes(native, finer, attacked[1:], points[1:], rights > 0.5, threat, seed)
    return GradientRecord(
        rung=rung,
        dtype=str(finer.dtype).removeprefix("torch."),
        threshold=THRESHOLD[finer.dtype],
        points=(points[0], *others),
        classes=native.served(x).shape[1],
        further=FollowUp(attack="every class", total=len(x), correct=correct, before=None),
        agreement=min((each for each in agreements if each is not None), default=None),
        checks=CHECKS,
    )


def _short_attack(
    view: DefenseView, natural: AttackPoint, threat: ThreatModel, seed: int
) -> AttackPoint:
    """Return the point that an attack reaches after one to three steps from a random start."""
    draws = torch.Generator().manual_seed(seed_of(seed, "short attack"))
    steps = int(torch.randint(1, _SHORT + 1, (), generator=draws))
    start = random_start(natural.x, threat, draws)
    point = attack_point(view, start, natural.y)
    for _ in range(steps):
        if threat.norm == "l1" or threat.eps == 0:
            break  # a step in l1 moves few pixels: the random start is as good
        length = threat.eps / 2
        moved = point.x + length * steepest(point.gradient.nan_to_num(), threat.norm)
        point = attack_point(view, threat.project(moved, natural.x), natural.y)
    return point


def _attack_every_class(
    view: DefenseView, natural: AttackPoint, threat: ThreatModel, seed: int, draws: int
) -> tuple[AttackPoint, Tensor]:
    """Attack toward every class by means of gradients under several seeds.

    Returns:
        Where the attack ended, and in what share of other seeds each member is correct there, (N,).
    """
    x, y = natural.x, natural.y
    views = view.under("attack", draws)

    def ascent(images: Tensor, targets: Tensor) -> Evaluation:
        margins, gradients = zip(*(each.margins(images, y, targets) for each in views), strict=True)
        usable = [each.nan_to_num() for each in gradients if each is not None]
        gradient = sum(usable, start=torch.zeros_like(images)) / draws
        return Evaluation(torch.stack(margins).nan_to_num().mean(dim=0), gradient)

    start = torch.Generator().manual_seed(seed_of(seed, "every class"))
    images = attack_every_class(view.served, ascent, x, y, threat, start, dependent=view.dependent)
    scored = [each.served(images).nan_to_num() for each in view.under("score", draws)]
    rights = torch.stack([logits.argmax(dim=1) == y for logits in scored]).float().mean(dim=0)
    return attack_point(view, images, y), rights


def _agreement(view: DefenseView, point: AttackPoint, draws: int) -> float | None:
    """Return how alike two means of gradients are, each over other seeds; None if all are equal.

    It is the median cosine over the members.

    Args:
        view: The defense.
        point: The images at which to compare.
        draws: Number of seeds of each mean.
    """
    views = view.under("draw", 2 * draws)
    distance = apart(*(wide(each.served(point.x)) for each in (view, views[0])))
    if distance is not None and distance <= DISTANCE:
        return None
    means = []
    for half in (views[:draws], views[draws:]):
        found = [each.gradient(point.x, point.y, point.targets) for each in half]
        means.append(sum(wide(g).flatten(1).nan_to_num() for g in found if g is not None))
    first, second = (torch.as_tensor(mean) for mean in means)
    if first.shape != second.shape or not first.dim():
        return 0.0
    return float(F.cosine_similarity(first, second).median())


def _in_double(native: DefenseView, point: AttackPoint) -> DefenseView:
    """Return the defense in float64; unchanged if it or its gradient does not run in float64."""
    x, y, targets = point.x[:2], point.y[:2], point.targets[:2]
    finer = DefenseView(native.origin, torch.float64, native.dependent, native.seed)
    if not isinstance(native.origin.defense, nn.Module) or native.origin.missing is not None:
        return native
    if not has_float64(x.device):
        return native
    try:
        copy.deepcopy(native.origin.defense).double()
        logits = finer.served(x)
        finer.gradient(x, y, targets)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
        return native
    return finer if logits.dtype == torch.float64 else native


def _check_point(
    native: DefenseView,
    finer: DefenseView,
    point: AttackPoint,
    threat: ThreatModel,
    members: int,
    seed: int,
) -> GradientPoint:
    """Compare the gradient of an attack with differences of the loss, at one batch of its images.

    Args:
        native: The defense in its own precision.
        finer: The defense in the precision in which differences are exact enough.
        point: The images, and the gradient that the attack computed there.
        threat: The threat model, which gives the length of large steps.
        members: Number of members to move if the defense is batch-dependent; otherwise all.
        seed: Seed of the directions, and of the choice of members.
    """
    draws = torch.Generator().manual_seed(seed)
    x, y, targets = point.x, point.y, point.targets
    fine = finer.gradient(x, y, targets)
    if fine is None:
        fine = torch.zeros_like(x, dtype=finer.dtype)
    alike = F.cosine_similarity(wide(point.gradient).flatten(1), wide(fine).flatten(1))
    same = native.served(x).argmax(dim=1) == finer.served(x).argmax(dim=1)
    order = torch.randperm(len(x), generator=draws)
    moved = order[:members] if native.dependent else order
    exact = errors_of(
        lambda images: finer.loss(images, y, targets),
        fine,
        x.to(finer.dtype),
        moved.to(x.device),
        [short_moves(fine, draws, step) for step in STEPS[finer.dtype]],
        THRESHOLD[finer.dtype],
        together=not native.dependent,
    )
    coarse = errors_of(
        lambda images: native.loss(images, y, targets),
        point.gradient,
        x,
        moved.to(x.device),
        [long_moves(point.gradient, draws, threat, share) for share in SHARES],
        COARSE,
        together=not native.dependent,
        bounds=threat.bounds,
    )
    return GradientPoint(
        members=len(moved),
        errors=tuple(finite(error) for error in exact),
        alike=float(alike.nan_to_num(nan=0.0).min()),
        same=int(same.sum()),
        of=len(x),
        coarse=tuple(finite(error) for error in coarse),
    )


def _scores_jump(
    view: DefenseView,
    natural: AttackPoint,
    reached: AttackPoint,
    standing: Tensor,
    threat: ThreatModel,
    seed: int,
) -> bool:
    """Return whether the scores jump, so that no attack can follow them."""
    draws = torch.Generator().manual_seed(seed_of(seed, "jumps"))

    def promise(x: Tensor, y: Tensor, targets: Tensor) -> Tensor:
        gradient = or_zero(view.gradient(x, y, targets), x)
        return _promised(AttackPoint(x, y, targets, gradient), threat)

    promised = _promised(natural, threat)
    if jumps.at_boundaries(view.served, promise, natural.x, promised, threat, draws, standing):
        return True
    return any(
        jumps.over_tiny_moves(
            view.served,
            partial(margin, y=point.y, targets=point.targets),
            point.x,
            point.gradient,
            _promised(point, threat),
            threat,
            draws,
            standing,
        )
        for point in (natural, reached)
    )


def _promised(point: AttackPoint, threat: ThreatModel) -> Tensor:
    """Return how far the gradient says that each margin changes over the largest coarse step."""
    move = long_moves(point.gradient, torch.Generator(), threat, SHARES[0])[0]
    low, high = threat.bounds
    moved = (point.x + move).clamp(low, high) - (point.x - move).clamp(low, high)
    return wide(point.gradient * moved).flatten(1).sum(dim=1).abs()


ALIKE: Final = 0.9
"""Smallest cosine, for every member, between an attack's own gradient and the checked one."""
