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

Both are also made for another wrong class, and for pixels with a faint slope (`other_slopes`).

Every query goes to a fresh copy, so a defense cannot tell the check from an attack.

This is the certificate of the suite's verdict. `dent.attacks.adaptive.certificate` is a simpler
check for use by hand: of one rung, at one batch, for the summed loss.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dent.attacks import DynamicDefense, Queries
from dent.attacks.adaptive.apgd import Evaluation, random_start, steepest
from dent.attacks.losses import runner_up
from dent.attacks.querier import NoGradientError
from dent.attacks.steps import enlarged
from dent.evaluation.probe import jumps, other_slopes
from dent.evaluation.probe.defense_view import DefenseView, best_gradient, margin
from dent.evaluation.probe.every_class import CLASSES, PASSES, attack_every_class, every_target
from dent.evaluation.records.plan import seed_of
from dent.evaluation.records.probe_answers import DISTANCE
from dent.evaluation.records.schema import FollowUp, GradientPoint, GradientRecord
from dent.evaluation.submission.fresh import Origin
from dent.evaluation.submission.submission import apart
from dent.support.devices import has_float64, wide
from dent.threat import ThreatModel

THRESHOLD: Final = {torch.float64: 1e-3, torch.float32: 5e-2}
"""The relative error of a member must stay below this."""
_STEPS: Final = {torch.float64: (1e-7, 1e-8, 1e-6, 1e-9), torch.float32: (0.1, 0.3, 0.03)}
"""Lengths in l2 by which a member moves. The first length passes most often."""
COARSE: Final = 0.6
"""A gradient with a relative error below this over large steps is useful to an attack. The gradient
of a wrong model has an error of about 1."""
_SHARES: Final = (0.5, 0.25)
"""Lengths of coarse steps, as shares of eps. They exceed rounding to 8 bits."""
_MEMBERS: Final = (2, 4, 4)
"""Number of members to move if the defense is batch-dependent: at the natural images, at the point
of the short attack, and at that of the long one."""
_LINES: Final = 2
"""Number of random directions besides that of the gradient; twice as many for coarse steps."""
_SHORT: Final = 3
"""Maximum number of steps of the short attack."""
DRAWS: Final = 3
"""Smallest number of submissions over which attacks of a suite average the gradient of a randomized
defense."""


def passes(size: int) -> Queries:
    """Return the maximum number of passes of a batch in the check. One in float64 counts as two.

    If the defense is randomized, an attack in the check takes several times as many.
    """
    exact = sum(_MEMBERS) * (1 + _LINES) * 2
    coarse = sum(_MEMBERS) * (1 + 2 * _LINES) * 2
    small = jumps.AT_BOUNDARIES + jumps.OVER_TINY_MOVES.times(2)
    points = len(_MEMBERS)
    exact_for = Queries(2 * (CLASSES + _LINES * 2 * 2), CLASSES * 2)
    coarse_for = Queries(1 + CLASSES + 2 * len(_SHARES) * 2 * _LINES * 2, CLASSES)
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
        natural = _attack_point(native, x, y)
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
    others = (native, finer, attacked[1:], points[1:], rights > 0.5, threat, seed)
    points = (points[0], *_with_other_slopes(*others))
    return GradientRecord(
        rung=rung,
        dtype=str(finer.dtype).removeprefix("torch."),
        threshold=THRESHOLD[finer.dtype],
        points=points,
        classes=native.served(x).shape[1],
        further=FollowUp(attack="every class", total=len(x), correct=correct, before=None),
        agreement=min((each for each in agreements if each is not None), default=None),
    )


@dataclass(frozen=True)
class _AttackPoint:
    """A point that an attack reaches, with the gradient there."""

    x: Tensor
    y: Tensor
    targets: Tensor
    gradient: Tensor


def _attack_point(view: DefenseView, x: Tensor, y: Tensor) -> _AttackPoint:
    logits = view.served(x).nan_to_num()
    targets = runner_up(logits, y, 1)
    gradient = view.gradient(x, y, targets)
    if gradient is None:
        name = type(view.origin.defense).__name__
        raise NoGradientError(f"{name} answers without a gradient to the images")
    return _AttackPoint(x, y, targets, gradient)


def _short_attack(
    view: DefenseView, natural: _AttackPoint, threat: ThreatModel, seed: int
) -> _AttackPoint:
    """Return the point that an attack reaches after one to three steps from a random start."""
    draws = torch.Generator().manual_seed(seed_of(seed, "short attack"))
    steps = int(torch.randint(1, _SHORT + 1, (), generator=draws))
    start = random_start(natural.x, threat, draws)
    point = _attack_point(view, start, natural.y)
    for _ in range(steps):
        if threat.norm == "l1" or threat.eps == 0:
            break  # a step in l1 moves few pixels: the random start is as good
        length = threat.eps / 2
        moved = point.x + length * steepest(point.gradient.nan_to_num(), threat.norm)
        point = _attack_point(view, threat.project(moved, natural.x), natural.y)
    return point


def _attack_every_class(
    view: DefenseView, natural: _AttackPoint, threat: ThreatModel, seed: int, draws: int
) -> tuple[_AttackPoint, Tensor]:
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
    return _attack_point(view, images, y), rights


def _agreement(view: DefenseView, point: _AttackPoint, draws: int) -> float | None:
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


def _in_double(native: DefenseView, point: _AttackPoint) -> DefenseView:
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
    point: _AttackPoint,
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
    exact = _errors(
        lambda images: finer.loss(images, y, targets),
        fine,
        x.to(finer.dtype),
        moved.to(x.device),
        [_lengths(fine, draws, step) for step in _STEPS[finer.dtype]],
        THRESHOLD[finer.dtype],
        together=not native.dependent,
    )
    coarse = _errors(
        lambda images: native.loss(images, y, targets),
        point.gradient,
        x,
        moved.to(x.device),
        [_strides(point.gradient, draws, threat, share) for share in _SHARES],
        COARSE,
        together=not native.dependent,
        bounds=threat.bounds,
    )
    return GradientPoint(
        members=len(moved),
        errors=tuple(_finite(error) for error in exact),
        alike=float(alike.nan_to_num(nan=0.0).min()),
        same=int(same.sum()),
        of=len(x),
        coarse=tuple(_finite(error) for error in coarse),
    )


def _with_other_slopes(
    native: DefenseView,
    finer: DefenseView,
    attacked: Sequence[_AttackPoint],
    points: Sequence[GradientPoint],
    standing: Tensor,
    threat: ThreatModel,
    seed: int,
) -> tuple[GradientPoint, ...]:
    """Return the comparisons, without the errors of those that fail for other slopes.

    Args:
        native: The defense in its own precision.
        finer: The defense in the precision in which differences are exact enough.
        attacked: Images that attacks reached.
        points: The comparisons at these images.
        standing: bool (N,), the members that an attack left correct.
        threat: The threat model.
        seed: Seed of the directions.
    """
    checked = []
    for index, (reached, point) in enumerate(zip(attacked, points, strict=True)):
        draws = torch.Generator().manual_seed(seed_of(seed, "other slopes", index))
        changes: dict[str, tuple[None, ...]] = {}
        targets = every_target(native.served(reached.x).nan_to_num(), reached.y)
        exact = all(each is not None and each < THRESHOLD[finer.dtype] for each in point.errors)
        if exact and not _exact_for(finer, reached, targets, draws):
            changes["errors"] = (None,) * point.members
        if not _coarse_for(native, reached, targets, standing, threat, draws):
            changes["coarse"] = (None,) * point.members
        checked.append(point.model_copy(update=changes))
    return tuple(checked)


def _exact_for(
    view: DefenseView, point: _AttackPoint, targets: Sequence[Tensor], draws: torch.Generator
) -> bool:
    """Return whether the gradients of the margins of all these classes are exact."""
    x, y, limit = point.x.to(view.dtype), point.y, THRESHOLD[view.dtype]
    gradients = [_or_zero(view.gradient(x, y, each), x) for each in targets]
    least = torch.tensor(math.inf)
    for step in _STEPS[view.dtype]:
        moves = _lengths(x, draws, step)[1:]
        least = least.minimum(
            other_slopes.errors_over(
                view.served, gradients, x, y, targets, moves, together=view.dependent
            )
        )
        if bool((least < limit).all()):
            return True
    return False


def _coarse_for(
    view: DefenseView,
    point: _AttackPoint,
    targets: Sequence[Tensor],
    standing: Tensor,
    threat: ThreatModel,
    draws: torch.Generator,
) -> bool:
    """Return whether gradients predict large steps for all these classes, and for faint pixels."""
    x, y = point.x, point.y
    gradients = [_or_zero(view.gradient(x, y, each), x) for each in targets]
    lengths = [_strides(point.gradient, draws, threat, share)[1:] for share in _SHARES]
    kinds = [lengths]
    if threat.norm == "linf":
        kinds.append([other_slopes.leveled(gradients, moves) for moves in lengths])
    for kind in kinds:
        least = torch.tensor(math.inf)
        for moves in kind:
            least = least.minimum(
                other_slopes.errors_over(
                    view.served,
                    gradients,
                    x,
                    y,
                    targets,
                    moves,
                    together=view.dependent,
                    bounds=threat.bounds,
                )
            )
        wrong = (least > COARSE).any(dim=0)
        every = torch.ones_like(wrong)
        if jumps.too_many(wrong, every, every if view.dependent else standing.cpu()):
            return False
    return True


def _or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _scores_jump(
    view: DefenseView,
    natural: _AttackPoint,
    reached: _AttackPoint,
    standing: Tensor,
    threat: ThreatModel,
    seed: int,
) -> bool:
    """Return whether the scores jump, so that no attack can follow them."""
    draws = torch.Generator().manual_seed(seed_of(seed, "jumps"))

    def promise(x: Tensor, y: Tensor, targets: Tensor) -> Tensor:
        gradient = _or_zero(view.gradient(x, y, targets), x)
        return _promised(_AttackPoint(x, y, targets, gradient), threat)

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


def _promised(point: _AttackPoint, threat: ThreatModel) -> Tensor:
    """Return how far the gradient says that each margin changes over the largest coarse step."""
    move = _strides(point.gradient, torch.Generator(), threat, _SHARES[0])[0]
    low, high = threat.bounds
    moved = (point.x + move).clamp(low, high) - (point.x - move).clamp(low, high)
    return wide(point.gradient * moved).flatten(1).sum(dim=1).abs()


ALIKE: Final = 0.9
"""Smallest cosine, for every member, between an attack's own gradient and the checked one."""


def _errors(
    loss: Callable[[Tensor], Tensor],
    gradient: Tensor,
    x: Tensor,
    members: Tensor,
    tried: Sequence[Sequence[Tensor]],
    threshold: float,
    *,
    together: bool,
    bounds: tuple[float, float] | None = None,
) -> list[float]:
    """Return for each moved member the smallest relative error of the gradient over all lengths.

    Args:
        loss: The loss of the served logits, by member.
        gradient: The gradient of the summed loss.
        x: The images at which the gradient was computed.
        members: Indices of the members to move.
        tried: For each length, moves of all members (N, ...). The first move is along the gradient.
        threshold: Stop at the first length at which all errors so far are below this.
        together: Whether to move all members at once, because they do not affect each other.
        bounds: The range to which moved images are clamped; None does not clamp.
    """
    least = [math.inf] * len(members)
    for moves in tried:
        slopes, changes = [], []
        for move in moves:
            groups = [members] if together else list(members.reshape(-1, 1))
            slope, change = [], []
            for group in groups:
                step = torch.zeros_like(x).index_copy(0, group, move[group])
                up, down = x + step, x - step
                if bounds is not None:
                    up, down = up.clamp(*bounds), down.clamp(*bounds)
                after, before = loss(up), loss(down)
                predicted = wide(gradient * (up - down)).flatten(1).sum(dim=1)
                if together:
                    slope += predicted.cpu()[group.cpu()].tolist()
                    change += (after - before).cpu()[group.cpu()].tolist()
                else:  # a member may change the answers to all others
                    slope.append(float(predicted.cpu()[group.cpu()].sum()))
                    change.append(float((after - before).sum()))
            slopes.append(slope)
            changes.append(change)
        errors = [
            _relative([row[index] for row in slopes], [row[index] for row in changes])
            for index in range(len(members))
        ]
        least = list(map(min, least, errors))
        if max(least) < threshold:
            break
    return least


def _relative(slopes: Sequence[float], changes: Sequence[float]) -> float:
    """Return the larger of two errors: along the gradient, and over all random directions."""
    if not all(map(math.isfinite, (*slopes, *changes))):
        return math.inf
    along = abs(slopes[0] - changes[0]) / abs(changes[0]) if changes[0] else math.inf
    size = math.hypot(*changes[1:])
    across = math.inf
    if size:
        across = math.hypot(*(s - c for s, c in zip(slopes[1:], changes[1:], strict=True))) / size
    return max(along, across)


def _lengths(gradient: Tensor, draws: torch.Generator, length: float) -> list[Tensor]:
    """Return moves of a length in l2: along the sign of the gradient, and in random directions."""
    lines = [gradient.sign()]
    lines += [_random(gradient, draws) for _ in range(_LINES)]
    return [length * _unit(line) for line in lines]


def _strides(
    gradient: Tensor, draws: torch.Generator, threat: ThreatModel, share: float
) -> list[Tensor]:
    """Return moves by a share of eps: along the gradient, and in random directions.

    They have this length in the norm of the threat model. For linf, they go along the signs.
    """
    lines = [gradient, *(_random(gradient, draws) for _ in range(2 * _LINES))]
    length = share * threat.eps
    if threat.norm == "linf":
        return [length * line.sign() for line in lines]
    return [length * _unit(line, order=1 if threat.norm == "l1" else 2) for line in lines]


def _random(like: Tensor, draws: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=draws, dtype=torch.float64).to(like)


def _unit(rows: Tensor, order: int = 2) -> Tensor:
    flat = enlarged(rows).flatten(1)
    length = flat.norm(p=order, dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    unit: Tensor = flat / length
    return unit.reshape(rows.shape)


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None
