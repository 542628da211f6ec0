"""AutoAttack (Croce & Hein, ICML 2020) through `pyautoattack`, under two protocols.

`frozen` runs the same code over a batch that stays together (`dent.attacks.autoattack.frozen`).
`published` runs `pyautoattack.AutoAttack` as it ships, which regroups whoever still stands into
new batches: what the paper did, and what its numbers need.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, final, get_args

from dent.attacks.autoattack.frozen import FrozenBatch, runs_of
from dent.attacks.autoattack.parts import (
    SETS,
    Overrides,
    Part,
    PartName,
    SetName,
    check_part,
    dlr_is_undefined,
    shipped_parts,
)
from dent.attacks.autoattack.published import run_published
from dent.attacks.base import Attack, Outcome
from dent.attacks.checks import is_count
from dent.attacks.querier import Queries
from dent.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from dent.attacks.querier import Querier
    from dent.threat import Norm, ThreatModel

Protocol = Literal["frozen", "published"]
Ask = Literal["whole", "standing"]


@final
class AutoAttack(Attack):
    """One of AutoAttack's attacks, or one of its versions as a cumulative set.

    Frozen: every query submits the whole batch, members in their places. A member that falls
    keeps its adversarial image, and stands in the batch with it while the others are attacked; a
    member that has not fallen, with its natural image. On a batch-dependent defense a fallen
    member may stand again once others have moved; that is looked up after every run, and it is
    attacked again. What is returned there is the worst whole batch that the defense was asked
    about, the final one or any before.

    Published: `run_standard_evaluation` on the images given, in batches of `batch_size`, which
    AutoAttack fills anew with the survivors for every attack. Give it all images of an
    evaluation in one call: survivors are regrouped among those of one call. Rows that are no
    prediction are shown to it as equal logits.

    Fewer classes than AutoAttack's nine targets use as many targets as there are. Where DLR is
    undefined (below three classes, targeted below four), the frozen protocol uses the
    cross-entropy in its place and says so in the result's notes; the published one refuses.
    """

    def __init__(
        self,
        name: PartName | SetName,
        iterations: int | None = None,
        restarts: int | None = None,
        targets: int | None = None,
        rho: float | None = None,
        square_iterations: int | None = None,
        protocol: Protocol = "frozen",
        batch_size: int | None = None,
        ask: Ask = "whole",
    ) -> None:
        """Choose an attack; whatever is None is as AutoAttack ships it for the norm.

        Args:
            name: `apgd-ce`, `apgd-dlr`, `apgd-t`, `fab`, `fab-t`, `square`, or the set
                `standard` or `plus`.
            iterations: Of APGD and FAB; of `square` alone, its queries.
            restarts: Of a single attack.
            targets: Target classes of `apgd-t` and `fab-t`.
            rho: APGD's share of successful steps, in (0, 1).
            square_iterations: Square's queries in a set.
            protocol: `frozen` or `published`.
            batch_size: For `published`, the size that survivors are regrouped into; by default
                all images given, and in an evaluation the size of its batches.
            ask: For `frozen`: `standing` asks a batch-independent defense about those alone who
                still stand, which is faster and the same but for rounding. A batch-dependent
                one is always asked about its whole batch.

        Raises:
            ConfigError: If a value is out of range or has no effect on this attack.
        """
        if protocol not in get_args(Protocol):
            raise ConfigError(f"protocol must be 'frozen' or 'published', got {protocol!r}")
        if batch_size is not None and (protocol == "frozen" or not is_count(batch_size)):
            raise ConfigError(
                f"batch_size is for protocol='published', from 1, got {batch_size} for "
                f"{protocol!r}: the frozen protocol takes each batch as it is given"
            )
        if ask not in get_args(Ask) or (protocol == "published" and ask != "whole"):
            raise ConfigError(
                f"ask must be 'whole' or, frozen alone, 'standing', got {ask!r} for {protocol!r}"
            )
        if protocol == "published" and name == "fab-t" and restarts not in (None, 1):
            raise ConfigError(
                f"restarts of fab-t is 1 in AutoAttack as published, got {restarts}; use frozen"
            )
        self.name = name
        self._name: PartName | SetName = name
        self.protocol: Protocol = protocol
        self.batch_size = batch_size
        self.ask: Ask = ask
        self._overrides = Overrides(iterations, restarts, targets, rho, square_iterations)
        self._overrides.check(name)

    def sized(self, batch_size: int) -> AutoAttack:
        """Published, survivors are regrouped into batches of this size if none was chosen."""
        if self.protocol == "frozen" or self.batch_size is not None:
            return self
        return self._with(batch_size=batch_size)

    def longer(self, norm: Norm = "linf") -> AutoAttack | None:
        """The gradient attacks with twice the iterations, Square as it is; None of Square alone."""
        followed = [part.iterations for part in self.parts(norm) if part.gradient]
        if not followed:
            return None
        return self._with(iterations=2 * max(followed))

    def _with(self, **changes: Any) -> AutoAttack:
        """The same attack under the same name, some arguments changed."""
        same = {"protocol": self.protocol, "batch_size": self.batch_size, "ask": self.ask}
        changed = AutoAttack(self._name, **(asdict(self._overrides) | same | changes))
        changed.name = self.name
        return changed

    def parts(self, norm: Norm) -> tuple[Part, ...]:
        """The attacks that run, in order, with their budgets."""
        alone = self._name not in SETS
        shipped = shipped_parts(self._name, norm)
        return tuple(self._overrides.apply(part, alone=alone) for part in shipped)

    def settings(self, norm: Norm = "linf") -> dict[str, Any]:
        """The hyper-parameters as JSON values, for records."""
        return {
            "protocol": self.protocol,
            "batch_size": self.batch_size,
            "parts": [part.settings() for part in self.parts(norm)],
            "pyautoattack": version("pyautoattack"),
            **({"ask": self.ask} if self.ask != "whole" else {}),
        }

    def queries(self, n_classes: int, norm: Norm = "linf") -> Queries:
        """The passes of one batch at most, where no member falls."""
        total = sum((part.queries(n_classes) for part in self.parts(norm)), Queries(1, 0))
        if self.protocol == "published":
            # Looking at the first batch seven times, and each attack's own look before and after.
            total = total + Queries(7 + 2 * len(self.parts(norm)), 0)
        return total

    def passes(self, n_classes: int, norm: Norm, size: int) -> Queries:
        """As `queries`, for every batch that the published protocol makes of `size` images."""
        batches = math.ceil(size / self.batch_size) if self.batch_size else 1
        return self.queries(n_classes, norm).times(batches)

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        """Run the parts in order, each against whoever still stands."""
        parts = self.parts(threat.norm)
        for part in parts:
            check_part(part, threat, target.natural.shape)
        if self.protocol == "published":
            return run_published(self._name, parts, target, threat, seed, self.batch_size)
        batch = FrozenBatch(target, whole=self.ask == "whole" or target.batch_dependent)
        fooled_after: dict[str, Tensor] = {}
        for part in parts:
            batch.attack(runs_of(part, batch, threat, seed))
            fooled_after[part.name] = ~batch.standing
        notes = tuple(
            f"{part.name} used the cross-entropy: DLR is undefined for {target.classes} classes"
            for part in parts
            if dlr_is_undefined(part, target.classes or 0)
        )
        worst = target.worst
        if worst is None:
            return Outcome(batch.current, ~batch.standing, fooled_after, notes)
        return Outcome(worst.images, worst.fooled, fooled_after, notes)
