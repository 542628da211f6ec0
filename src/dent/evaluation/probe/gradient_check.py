"""Is the gradient that attacks follow the one of what is served?

An attack is white-box only if it is. So the gradient is taken as an attack takes it: of a whole
batch, in the defense's own precision, at the natural images and at a point that a short attack
reached. Then it is held, member by member, against what served answers do when the images move:

    exact     In float64, by steps so small that the slope is all there is. The float64 gradient
              must be that of the answers, and the attack's own must point the same way.
    coarse    In the defense's own precision, by steps of half and a quarter of eps: what a gradient
              that stands in for another one (straight-through, BPDA) is worth to an attack.

Every question meets a copy that has answered nothing, so none can be told from an attack's.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dent.attacks import Defense, DynamicDefense, Queries, answer
from dent.attacks.adaptive import Rung
from dent.attacks.adaptive.apgd import random_start, steepest
from dent.attacks.adaptive.capabilities import adapt_accepts
from dent.attacks.base import isolated_random_state
from dent.attacks.losses import runner_up
from dent.attacks.querier import View
from dent.evaluation.records.plan import seed_of
from dent.evaluation.records.schema import GradientPoint, GradientRecord
from dent.evaluation.submission.fresh import Origin
from dent.support.devices import has_float64, wide
from dent.threat import ThreatModel

THRESHOLD: Final = {torch.float64: 1e-3, torch.float32: 5e-2}
"""What the relative error of a member must stay below."""
_STEPS: Final = {torch.float64: (1e-7, 1e-8, 1e-6, 1e-9), torch.float32: (0.1, 0.3, 0.03)}
"""Lengths in l2 by which a member moves, the likeliest first."""
_SHARES: Final = (0.5, 0.25)
"""Lengths of coarse steps, in eps: beyond the stairs that rounding to 8 bits makes of an image."""
_MEMBERS: Final = (2, 4)
"""Of a defense whose members touch each other, how many are moved, at either point."""
_LINES: Final = 2
"""Random directions, beside the gradient's own."""
_SHORT: Final = 3
"""Steps of the short attack, at most."""


def passes(size: int) -> Queries:
    """What it asks at most, in passes of a batch; one in float64 counts as two."""
    single = sum(_MEMBERS) * (1 + _LINES) * 2
    return Queries(2 * (single * 2 + 2) + single + _SHORT, 2 * 3 + _SHORT)


@dataclass(frozen=True)
class _Asked:
    """A defense as it is looked at: in some precision, always by a copy that knows nothing yet."""

    origin: Origin
    dtype: torch.dtype
    dependent: bool
    seed: int

    def defense(self) -> Defense:
        made = self.origin.new(self.seed).defense
        if self.dtype == torch.float64 and isinstance(made, nn.Module):
            made = made.double()
        return made

    def served(self, x: Tensor) -> Tensor:
        """Logits as they are served."""
        with isolated_random_state(self.seed, x.device), torch.no_grad():
            return answer(self.defense(), x.to(self.dtype))

    def gradient(self, x: Tensor, y: Tensor, targets: Tensor) -> Tensor | None:
        """The gradient of each member's margin, as an attack takes it; None where there is none."""
        with (
            isolated_random_state(self.seed, x.device),
            torch.inference_mode(mode=False),
            torch.enable_grad(),
        ):
            leaf = x.detach().to(self.dtype).requires_grad_()
            logits = exact_view(self.defense())(leaf)
            if not logits.requires_grad:
                return None
            total = _loss(logits, y, targets).sum()
            (found,) = torch.autograd.grad(total, leaf, allow_unused=True)
        return found

    def loss(self, x: Tensor, y: Tensor, targets: Tensor) -> Tensor:
        """What is ascended, by member (N,), as it is served."""
        return wide(_loss(self.served(x), y, targets))


def exact_view(defense: Defense) -> View:
    """The defense with the best gradient it offers: through all of the adaptation where it can."""
    if isinstance(defense, DynamicDefense) and adapt_accepts(defense, "differentiable"):
        return Rung("unrolled").view(defense)
    return lambda x: answer(defense, x)


def name_of(defense: Defense) -> str:
    """How that gradient is called in records."""
    offers = isinstance(defense, DynamicDefense) and adapt_accepts(defense, "differentiable")
    return "unrolled" if offers else "plain"


def check_gradient(
    origin: Origin, x: Tensor, y: Tensor, threat: ThreatModel, seed: int
) -> GradientRecord:
    """Hold the gradient of a defense against what it serves.

    Args:
        origin: Of the defense.
        x: A whole batch (N, C, H, W).
        y: Its labels.
        threat: Of the attacks.
        seed: Of directions, members, and what the defense draws.
    """
    defense = origin.defense
    dependent = isinstance(defense, DynamicDefense) and bool(defense.batch_dependent)
    own = _Asked(origin, x.dtype, dependent, seed)
    rung = name_of(defense)
    natural = _take(own, x, y)
    if natural is None:
        missing = f"{type(defense).__name__} answers without a gradient to the images"
        return GradientRecord(rung=rung, missing=missing)
    reached = _short_attack(own, natural, threat, seed)
    finer = _in_double(own, x)
    points = tuple(
        _point(own, finer, taken, threat, members, seed_of(seed, index))
        for index, (taken, members) in enumerate(zip((natural, reached), _MEMBERS, strict=True))
    )
    return GradientRecord(
        rung=rung,
        dtype=str(finer.dtype).removeprefix("torch."),
        threshold=THRESHOLD[finer.dtype],
        points=points,
    )


@dataclass(frozen=True)
class _Taken:
    """The gradient at a batch, as an attack took it."""

    x: Tensor
    y: Tensor
    targets: Tensor
    gradient: Tensor


def _take(asked: _Asked, x: Tensor, y: Tensor) -> _Taken | None:
    logits = asked.served(x).nan_to_num()
    targets = runner_up(logits, y, 1)
    gradient = asked.gradient(x, y, targets)
    return None if gradient is None else _Taken(x, y, targets, gradient)


def _short_attack(asked: _Asked, natural: _Taken, threat: ThreatModel, seed: int) -> _Taken:
    """A point that an attack has reached after one to three steps from a random start."""
    draws = torch.Generator().manual_seed(seed_of(seed, "short attack"))
    steps = int(torch.randint(1, _SHORT + 1, (), generator=draws))
    start = random_start(natural.x, threat, draws)
    taken = _take(asked, start, natural.y) or natural
    for _ in range(steps):
        if threat.norm == "l1" or threat.eps == 0:
            break  # a step in l1 moves few pixels: the start is as good a point
        length = threat.eps / 2
        moved = taken.x + length * steepest(taken.gradient.nan_to_num(), threat.norm)
        taken = _take(asked, threat.project(moved, natural.x), natural.y) or taken
    return taken


def _in_double(own: _Asked, x: Tensor) -> _Asked:
    """The same in float64; in its own precision where that cannot be had."""
    finer = _Asked(own.origin, torch.float64, own.dependent, own.seed)
    if not isinstance(own.origin.defense, nn.Module) or own.origin.missing is not None:
        return own
    if not has_float64(x.device):
        return own
    try:
        copy.deepcopy(own.origin.defense).double()
        logits = finer.served(x[:2])
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
        return own
    return finer if logits.dtype == torch.float64 else own


def _point(
    own: _Asked, finer: _Asked, taken: _Taken, threat: ThreatModel, members: int, seed: int
) -> GradientPoint:
    draws = torch.Generator().manual_seed(seed)
    x, y, targets = taken.x, taken.y, taken.targets
    fine = finer.gradient(x, y, targets)
    if fine is None:
        fine = torch.zeros_like(x, dtype=finer.dtype)
    alike = F.cosine_similarity(wide(taken.gradient).flatten(1), wide(fine).flatten(1))
    same = own.served(x).argmax(dim=1) == finer.served(x).argmax(dim=1)
    order = torch.randperm(len(x), generator=draws)
    moved = order[:members] if own.dependent else order
    exact = _errors(
        lambda images: finer.loss(images, y, targets),
        fine,
        x.to(finer.dtype),
        moved.to(x.device),
        [_lengths(fine, draws, step) for step in _STEPS[finer.dtype]],
        THRESHOLD[finer.dtype],
        together=not own.dependent,
    )
    coarse = None
    if max(exact) >= THRESHOLD[finer.dtype] or float(alike.min()) < ALIKE:
        coarse = _errors(
            lambda images: own.loss(images, y, targets),
            taken.gradient,
            x,
            moved.to(x.device),
            [_strides(taken.gradient, draws, threat, share) for share in _SHARES],
            0.0,
            together=not own.dependent,
            bounds=threat.bounds,
        )
    return GradientPoint(
        members=len(moved),
        errors=tuple(_finite(each) for each in exact),
        alike=float(alike.nan_to_num(nan=0.0).min()),
        same=int(same.sum()),
        of=len(x),
        coarse=None if coarse is None else tuple(_finite(each) for each in coarse),
    )


ALIKE: Final = 0.9
"""The cosine that an attack's gradient of every member must have with the one that was checked."""


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
    """By member moved, the relative error of the gradient at whichever length has the least.

    Args:
        loss: By member, as it is served.
        gradient: Of its sum.
        x: Where.
        members: Who is moved.
        tried: By length, moves of all members (N, ...), the gradient's own direction first.
        threshold: Further lengths are not tried once all errors lie below.
        together: Members do not touch each other, and are moved at once.
        bounds: Moved images are clamped to them.
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
                told = wide(gradient * (up - down)).flatten(1).sum(dim=1)
                if together:
                    slope += told.cpu()[group.cpu()].tolist()
                    change += (after - before).cpu()[group.cpu()].tolist()
                else:  # a member may change the answers to all others
                    slope.append(float(told.cpu()[group.cpu()].sum()))
                    change.append(float((after - before).sum()))
            slopes.append(slope)
            changes.append(change)
        found = [
            _relative([row[at] for row in slopes], [row[at] for row in changes])
            for at in range(len(members))
        ]
        least = list(map(min, least, found))
        if max(least) < threshold:
            break
    return least


def _relative(slopes: Sequence[float], changes: Sequence[float]) -> float:
    """The larger of two: along the gradient, and over the random directions together."""
    if not all(map(math.isfinite, (*slopes, *changes))):
        return math.inf
    along = abs(slopes[0] - changes[0]) / abs(changes[0]) if changes[0] else math.inf
    size = math.hypot(*changes[1:])
    across = math.inf
    if size:
        across = math.hypot(*(s - c for s, c in zip(slopes[1:], changes[1:], strict=True))) / size
    return max(along, across)


def _lengths(gradient: Tensor, draws: torch.Generator, length: float) -> list[Tensor]:
    """Moves of a length in l2: along the gradient's sign, and at random."""
    lines = [gradient.sign()]
    lines += [_random(gradient, draws) for _ in range(_LINES)]
    return [length * _unit(line) for line in lines]


def _strides(
    gradient: Tensor, draws: torch.Generator, threat: ThreatModel, share: float
) -> list[Tensor]:
    """Moves of a share of eps in the threat model's norm: along the gradient, and at random."""
    lines = [gradient, *(_random(gradient, draws) for _ in range(2 * _LINES))]
    length = share * threat.eps
    return [length * (line.sign() if threat.norm == "linf" else _unit(line)) for line in lines]


def _random(like: Tensor, draws: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=draws, dtype=torch.float64).to(like)


def _unit(rows: Tensor) -> Tensor:
    flat = rows.flatten(1)
    length = flat.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    unit: Tensor = flat / length
    return unit.reshape(rows.shape)


def _loss(logits: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """The margin of a fixed wrong class: it has a slope wherever the scores have one."""
    picked = logits.gather(1, torch.stack([targets, y], dim=1))
    return picked[:, 0] - picked[:, 1]


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None
