"""Whether a gradient is also right where the other checks do not look.

The other checks compare margins of the likeliest wrong class, over moves in which every pixel takes
part. A defense may rely on each of these:

    other classes   The logits of other classes show a wrong slope, so attacks find no way to them.
    faint pixels    A few pixels have a steep slope, and those of all others are hidden. Each is
                    faint, and in a random move their sum is, too. But an attack in linf moves all
                    pixels toward a wrong class, and then their sum is large.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dent.evaluation.probe import jumps
from dent.evaluation.probe.defense_view import AttackPoint, DefenseView, margin, or_zero
from dent.evaluation.probe.every_class import every_target
from dent.evaluation.probe.moves import COARSE, SHARES, STEPS, THRESHOLD, long_moves, short_moves
from dent.evaluation.records.plan import seed_of
from dent.evaluation.records.schema import GradientPoint
from dent.support.devices import wide
from dent.threat import ThreatModel

Served = Callable[[Tensor], Tensor]
"""A function from a batch (N, C, H, W) to the served logits (N, classes)."""


def leveled(gradients: Sequence[Tensor], moves: Sequence[Tensor]) -> list[Tensor]:
    """Return moves in which no pixel counts more than usual.

    If a pixel's slope is steeper than the root mean square over the pixels of its image, it moves
    less by this factor.

    Args:
        gradients: Each (N, C, H, W). The steepest slope of a pixel counts.
        moves: Moves in which all pixels move equally far, each (N, C, H, W).
    """
    shares = torch.ones_like(wide(gradients[0]))
    for gradient in gradients:
        slopes = wide(gradient).abs()
        usual = slopes.flatten(1).square().mean(dim=1).sqrt().reshape(-1, *[1] * (slopes.dim() - 1))
        shares = torch.where(slopes > usual, shares.minimum(usual / slopes), shares)
    return [move * shares.to(move) for move in moves]


def errors_over(
    served: Served,
    gradients: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    targets: Sequence[Tensor],
    moves: Sequence[Tensor],
    *,
    together: bool,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    """Return the relative error of the changes that gradients predict, (targets, N).

    It is over all moves together: infinite if a change is not finite, and 0 if the margin neither
    changes nor should change.

    Args:
        served: The served logits.
        gradients: For each target, the gradient of the summed margin (N, C, H, W).
        x: The images at which it was computed, (N, C, H, W).
        y: Labels (N,).
        targets: The wrong classes, each (N,).
        moves: Moves of all members, (N, C, H, W).
        together: Whether to compare only the summed margins, because members affect each other.
            Then there is one error for each target, (targets, 1).
        bounds: The range to which moved images are clamped; None does not clamp.
    """
    missed, changed = [], []
    for move in moves:
        up, down = x + move, x - move
        if bounds is not None:
            up, down = up.clamp(*bounds), down.clamp(*bounds)
        after, before = served(up), served(down)
        slopes = torch.stack(
            [wide(gradient * (up - down)).flatten(1).sum(dim=1) for gradient in gradients]
        ).cpu()
        changes = torch.stack(
            [wide(margin(after, y, each)) - wide(margin(before, y, each)) for each in targets]
        ).cpu()
        if together:
            slopes, changes = (each.sum(dim=1, keepdim=True) for each in (slopes, changes))
        missed.append(slopes - changes)
        changed.append(changes)
    error, size = torch.stack(missed).norm(dim=0), torch.stack(changed).norm(dim=0)
    ratio = torch.where(error == 0, 0.0, error / size)
    return torch.where(ratio.isfinite(), ratio, math.inf)


def with_other_slopes(
    native: DefenseView,
    finer: DefenseView,
    attacked: Sequence[AttackPoint],
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
    view: DefenseView, point: AttackPoint, targets: Sequence[Tensor], draws: torch.Generator
) -> bool:
    """Return whether the gradients of the margins of all these classes are exact."""
    x, y, limit = point.x.to(view.dtype), point.y, THRESHOLD[view.dtype]
    gradients = [or_zero(view.gradient(x, y, each), x) for each in targets]
    least = torch.tensor(math.inf)
    for step in STEPS[view.dtype]:
        moves = short_moves(x, draws, step)[1:]
        least = least.minimum(
            errors_over(view.served, gradients, x, y, targets, moves, together=view.dependent)
        )
        if bool((least < limit).all()):
            return True
    return False


def _coarse_for(
    view: DefenseView,
    point: AttackPoint,
    targets: Sequence[Tensor],
    standing: Tensor,
    threat: ThreatModel,
    draws: torch.Generator,
) -> bool:
    """Return whether gradients predict large steps for all these classes, and for faint pixels."""
    x, y = point.x, point.y
    gradients = [or_zero(view.gradient(x, y, each), x) for each in targets]
    lengths = [long_moves(point.gradient, draws, threat, share)[1:] for share in SHARES]
    kinds = [lengths]
    if threat.norm == "linf":
        kinds.append([leveled(gradients, moves) for moves in lengths])
    for kind in kinds:
        least = torch.tensor(math.inf)
        for moves in kind:
            least = least.minimum(
                errors_over(
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
