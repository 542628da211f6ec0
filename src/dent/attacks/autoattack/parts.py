"""AutoAttack's attacks with their budgets, and the pyautoattack objects built from them."""

from __future__ import annotations

from dataclasses import dataclass
from logging import Logger
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor

from dent.attacks.querier import Queries
from dent.attacks.steps import enlarged
from dent.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dent.threat import Norm, ThreatModel

PartName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
SetName = Literal["standard", "plus"]
PARTS: tuple[PartName, ...] = get_args(PartName)
SETS: tuple[SetName, ...] = get_args(SetName)
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}

Model: TypeAlias = "Callable[[Tensor], Tensor]"

_MIN_LARGE_STEPS = 3  # the l1 schedule of three radii needs one iteration each


@dataclass(frozen=True)
class Part:
    """One of AutoAttack's attacks with its budget.

    Attributes:
        name: AutoAttack's name for it.
        iterations: APGD's and FAB's iterations, Square's queries.
        restarts: Number of runs, per target class if there are targets.
        targets: Largest number of target classes, by rank of the logits; 0 if untargeted.
        rho: APGD's share of successful steps up to which it halves the step.
        large_radii: Whether APGD in l1 starts at three and two times eps (Croce & Hein, ICML
            2021).
    """

    name: PartName
    iterations: int = 100
    restarts: int = 1
    targets: int = 0
    rho: float = 0.75
    large_radii: bool = False

    @property
    def gradient(self) -> bool:
        """Whether the part follows gradients. All parts but Square do."""
        return self.name != "square"

    def ranks(self, num_classes: int) -> tuple[int | None, ...]:
        """Return the ranks of the targets, or (None,) if untargeted.

        Rank 2 is the runner-up. There are at most as many ranks as classes but the first.
        """
        if not self.targets:
            return (None,)
        return tuple(range(2, min(self.targets, num_classes - 1) + 2))

    def queries(self, num_classes: int) -> Queries:
        """Return the largest number of passes of the frozen protocol, if no member is fooled.

        In each run, one forward finds the members that are still correct. In FAB and Square,
        another one checks the result.
        """
        n = self.iterations
        if self.name.startswith("apgd"):
            points = n + (3 if self.large_radii else 1)
            run = Queries(points + 1, points)
        elif self.name.startswith("fab"):
            run = Queries(2 * n + 3, n * (1 if self.targets else num_classes))
        else:
            run = Queries(n + 3, 0)
        if self.targets:
            run = run + Queries(1, 0)  # one more forward finds the target
        return run.times(self.restarts * len(self.ranks(num_classes)))

    def covers(self, other: Part) -> bool:
        """Return whether this is the same attack as another part, with at least its effort."""
        return (
            (self.name, self.rho, self.large_radii) == (other.name, other.rho, other.large_radii)
            and self.iterations >= other.iterations
            and self.restarts >= other.restarts
            and self.targets >= other.targets
        )


def shipped_parts(name: PartName | SetName, norm: Norm) -> tuple[Part, ...]:
    """Return the parts of an attack or a set, with AutoAttack's budgets.

    A single attack has its budget in the standard version, or in the plus version if it is only
    there (`apgd-dlr`, `fab`).
    """
    l1 = norm == "l1"
    standard = (
        Part("apgd-ce", restarts=5 if l1 else 1, large_radii=l1),
        Part("apgd-t", targets=5 if l1 else 9, large_radii=l1),
        Part("fab-t", targets=9),
        Part("square", iterations=5000),
    )
    plus = (
        Part("apgd-ce", restarts=5),
        Part("apgd-dlr", restarts=5),
        Part("fab", restarts=5),
        Part("square", iterations=5000),
        Part("apgd-t", targets=9),
        Part("fab-t", targets=9),
    )
    if name == "standard":
        return standard
    if name == "plus":
        return plus
    return (next(part for part in standard + plus if part.name == name),)


def check_part(part: Part, threat: ThreatModel, shape: torch.Size) -> None:
    """Check that pyautoattack can run a part, before it fails midway.

    Raises:
        ConfigError: It cannot. The message says what to change.
    """
    if threat.bounds != (0.0, 1.0):
        raise ConfigError(
            f"AutoAttack's code keeps pixels in [0, 1], the threat model has {threat.bounds}: "
            "scale the images to [0, 1] and put the scaling into the model"
        )
    if part.large_radii and part.iterations < _MIN_LARGE_STEPS:
        raise ConfigError(
            f"{part.name} in l1 divides its iterations over three radii and needs at least "
            f"{_MIN_LARGE_STEPS}, got {part.iterations}"
        )
    if part.name == "square" and threat.norm != "linf" and not _square_tiles(*shape[-2:]):
        raise ConfigError(
            f"square in {threat.norm} starts from tiles of a fifth of the height, which do not "
            f"fit images of {shape[-2]} x {shape[-1]}: use another size (28, 32, 64 and 224 fit), "
            "linf, or another attack"
        )


def _square_tiles(height: int, width: int) -> bool:
    """Return whether the tiles that Square places in l2 and l1 stay inside the image."""
    side = height // 5
    offset = (height - 5 * side) // 2
    # Tiles of one pixel may cross the edge, because nothing is written there.
    return side == 1 or (
        side > 1 and all(offset + side * (extent // side) <= extent for extent in (height, width))
    )


def dlr_is_undefined(part: Part, num_classes: int) -> bool:
    """Return whether the loss needs more classes. DLR needs three, targeted DLR four."""
    return num_classes < {"apgd-dlr": 3, "apgd-t": 4}.get(part.name, 0)


def build_apgd(
    model: Model, part: Part, threat: ThreatModel, seed: int, device: torch.device, logger: Logger
) -> Any:
    """Return APGD as pyautoattack builds it, with the budget of a part."""
    attack: Any = APGDAttack_targeted if part.targets else APGDAttack
    variant: dict[str, Any] = (
        {"n_target_classes": part.targets}
        if part.targets
        else {"loss": "dlr" if part.name == "apgd-dlr" else "ce"}
    )
    return attack(
        model,
        n_iter=part.iterations,
        norm=NORMS[threat.norm],
        n_restarts=part.restarts,
        eps=threat.eps,
        seed=seed,
        rho=part.rho,
        device=device,
        use_largereps=part.large_radii,
        logger=logger,
        **variant,
    )


def build_fab(
    attack: Any, model: Model, part: Part, threat: ThreatModel, seed: int, device: torch.device
) -> Any:
    """Return FAB, of the class `attack`, with the budget of a part."""
    return attack(
        model,
        n_restarts=part.restarts,
        n_iter=part.iterations,
        eps=threat.eps,
        seed=seed,
        norm=NORMS[threat.norm],
        device=device,
    )


def build_square(
    attack: Any, model: Model, part: Part, threat: ThreatModel, seed: int, device: torch.device
) -> Any:
    """Return Square, of the class `attack`, with a part's budget and AutoAttack's settings."""
    return attack(
        model,
        p_init=0.8,
        n_queries=part.iterations,
        eps=threat.eps,
        norm=NORMS[threat.norm],
        n_restarts=part.restarts,
        seed=seed,
        device=device,
        resc_schedule=False,
    )


class FAB(FABAttack_PT):
    """FAB with gradients to the images only.

    As shipped, it calls `.backward()`, which adds to the `.grad` of every parameter of the model.
    """

    def _answer(self, images: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (N, C) of the images, and the labels (N,) of their tags."""
        return self.predict(images), tags

    def get_diff_logits_grads_batch(self, imgs: Tensor, la: Tensor) -> tuple[Tensor, Tensor]:
        """Return each logit minus the label's, (N, C), and the gradients, (N, C, *image)."""
        with torch.enable_grad():
            leaf = imgs.clone().requires_grad_()
            logits, labels = self._answer(leaf, la)
            gradients = [
                torch.autograd.grad(logits[:, c].sum(), leaf, retain_graph=True)[0]
                for c in range(logits.shape[1])
            ]
        stacked = torch.stack(gradients, dim=1)
        rows = torch.arange(len(imgs), device=imgs.device)
        df = logits.detach() - logits.detach()[rows, labels].unsqueeze(1)
        df, dg = _enlarged(df, stacked - stacked[rows, labels].unsqueeze(1))
        df[rows, labels] = 1e10  # so that it is never the nearest boundary
        return df, dg

    def get_diff_logits_grads_batch_targeted(
        self, imgs: Tensor, la: Tensor, la_target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the target's logit minus the label's, (N, 1), and its gradient, (N, 1, *image)."""
        rows = torch.arange(len(imgs), device=imgs.device)
        with torch.enable_grad():
            leaf = imgs.clone().requires_grad_()
            logits, labels = self._answer(leaf, la)
            difference = logits[rows, la_target] - logits[rows, labels]
            (gradient,) = torch.autograd.grad(difference.sum(), leaf)
        return _enlarged(difference.detach().unsqueeze(1), gradient.unsqueeze(1))


def _enlarged(difference: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Scale differences (N, C) with tiny gradients (N, C, *image) alike: the boundary stays."""
    before = gradient.flatten(0, 1)
    after = enlarged(before)
    sizes = [rows.flatten(1).abs().amax(dim=1) for rows in (before, after)]
    factor = torch.where(sizes[0] == sizes[1], 1.0, sizes[1] / sizes[0])
    return difference * factor.reshape(difference.shape), after.reshape(gradient.shape)
