"""AutoAttack (Croce & Hein, ICML 2020) through `pyautoattack`, under two protocols.

`frozen` runs the same code over a batch that stays together (`dent.attacks.autoattack.frozen`).
`published` runs `pyautoattack.AutoAttack` as it ships, which regroups the members that are not yet
fooled into new batches, as in the paper and its numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, final, get_args

from dent.attacks.adaptive.among import Among
from dent.attacks.autoattack.frozen import FrozenBatch, runs_of
from dent.attacks.autoattack.parts import (
    PARTS,
    SETS,
    Part,
    PartName,
    SetName,
    check_part,
    dlr_is_undefined,
    shipped_parts,
)
from dent.attacks.autoattack.published import run_published
from dent.attacks.base import Attack, Outcome
from dent.attacks.checks import LATER, check_rho
from dent.attacks.querier import Queries
from dent.errors import ConfigError
from dent.support.checks import check_choice, check_counts, is_count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from dent.attacks.querier import Querier
    from dent.threat import Norm, ThreatModel

QueryProtocol = Literal["frozen", "published"]
Ask = Literal["whole", "standing"]
_T = TypeVar("_T", int, float)


@final
@dataclass(frozen=True)
class AutoAttack(Attack):
    """One of AutoAttack's attacks, or one of its sets.

    Frozen: unless `ask` is `standing`, every query is the whole batch, with every member in its
    place. While others are attacked, a fooled member has its adversarial image, and any other
    member its natural image. With a batch-dependent defense, a fooled member may become correct
    again when others change. The attack checks this after every run, and attacks such members
    again. For such a defense it returns the worst whole batch of all queries.

    Published: `run_standard_evaluation` on the given images, in batches of `batch_size`, which
    AutoAttack refills with the members that are still correct for every attack. Give it all images
    of an evaluation in one call, because it only regroups members within a call. It sees rows of
    logits that are not a prediction as equal logits.

    With fewer wrong classes than AutoAttack's nine targets, all of them are targets. DLR is
    undefined for fewer than three classes, and targeted DLR for fewer than four. There the frozen
    protocol uses the cross-entropy instead and says so in the result's notes; the published
    protocol raises a `ConfigError`.

    A setting that is None has AutoAttack's default for the norm. A setting that has no effect on
    the chosen attack is an error.
    """

    attack: PartName | SetName | None = None
    """`apgd-ce`, `apgd-dlr`, `apgd-t`, `fab`, `fab-t`, `square`, or the set `standard` or `plus`.
    Default: `name`."""
    iterations: int | None = None
    """Iterations of every gradient attack. If the attack is `square`, its queries."""
    restarts: int | None = None
    """Restarts of a single attack."""
    targets: int | None = None
    """Target classes of `apgd-t` and `fab-t`."""
    rho: float | None = None
    """APGD halves its step if at most this share of the steps improved the loss; in (0, 1)."""
    square_iterations: int | None = None
    """Queries of Square in a set."""
    protocol: QueryProtocol = "frozen"
    """`frozen` or `published`."""
    batch_size: int | None = None
    """For `published`, the size of the regrouped batches. Default: all given images, and in an
    evaluation its batch size."""
    ask: Ask = field(default="whole", metadata=LATER)
    """For `frozen`: `standing` queries only the members of a batch-independent defense that are
    still correct, which is faster and the same except for rounding. A batch-dependent defense
    and an `Among` always get whole batches."""

    named_by: ClassVar = "attack"

    def __post_init__(self) -> None:
        """Check every field, then combinations of fields."""
        if self.attack is None:
            object.__setattr__(self, "attack", self.name)
        super().__post_init__()
        check_choice("attack", self.attack, (*PARTS, *SETS))
        check_choice("protocol", self.protocol, get_args(QueryProtocol))
        self._check_budget()
        if self.batch_size is not None and (
            self.protocol == "frozen" or not is_count(self.batch_size)
        ):
            raise ConfigError(
                f"batch_size is for protocol='published', from 1, got {self.batch_size} for "
                f"{self.protocol!r}: the frozen protocol takes each batch as it is given"
            )
        if self.ask not in get_args(Ask) or (self.protocol == "published" and self.ask != "whole"):
            raise ConfigError(
                "ask must be 'whole' or, frozen alone, 'standing', got "
                f"{self.ask!r} for {self.protocol!r}"
            )
        if (
            self.protocol == "published"
            and self.attack == "fab-t"
            and self.restarts not in (None, 1)
        ):
            raise ConfigError(
                "restarts of fab-t is 1 in AutoAttack as published, got "
                f"{self.restarts}; use frozen"
            )

    def _check_budget(self) -> None:
        for key in ("iterations", "restarts", "targets", "square_iterations"):
            value = getattr(self, key)
            if value is not None:
                check_counts(1, **{key: value})
        if self.rho is not None:
            check_rho(self.rho)
        is_set, name = self.attack in SETS, str(self.attack)
        useless = {
            "restarts": self.restarts is not None and is_set,
            "targets": self.targets is not None and not (is_set or name.endswith("-t")),
            "rho": self.rho is not None and not (is_set or name.startswith("apgd")),
            "square_iterations": self.square_iterations is not None and not is_set,
        }
        wrong = [key for key, is_useless in useless.items() if is_useless]
        if wrong:
            raise ConfigError(
                f"{name} has no {', '.join(wrong)}: restarts are for single attacks, targets for "
                "apgd-t and fab-t, rho for apgd, square_iterations for sets (use iterations for "
                "square alone)"
            )

    @property
    def registered(self) -> PartName | SetName:
        """The name of the attack or the set."""
        return self.attack  # type: ignore[return-value]

    def sized(self, batch_size: int) -> AutoAttack:
        """Return the attack with this batch size if it is published and has none, else itself."""
        if self.protocol == "frozen" or self.batch_size is not None:
            return self
        return replace(self, batch_size=batch_size)

    def longer(self, norm: Norm = "linf") -> AutoAttack | None:
        """Return the attack with twice the iterations of its gradient attacks, or None.

        Square keeps its queries. The result is None if the attack is only Square.
        """
        iterations = [part.iterations for part in self.parts(norm) if part.gradient]
        return replace(self, iterations=2 * max(iterations)) if iterations else None

    def covers(self, other: Attack, norm: Norm = "linf") -> bool:
        """Return whether every part of another attack is covered by a part of this one."""
        return (
            isinstance(other, AutoAttack)
            and self.protocol == other.protocol
            and all(
                any(own_part.covers(part) for own_part in self.parts(norm))
                for part in other.parts(norm)
            )
        )

    def parts(self, norm: Norm) -> tuple[Part, ...]:
        """Return the attacks that run, in order, with their budgets."""
        return tuple(self._budget(part) for part in shipped_parts(self.registered, norm))

    def _budget(self, part: Part) -> Part:
        """Return a part with the budget from the settings."""
        alone = self.attack not in SETS
        iterations = self.iterations if part.gradient or alone else self.square_iterations
        return replace(
            part,
            iterations=part.iterations if iterations is None else iterations,
            restarts=part.restarts if self.restarts is None else self.restarts,
            targets=self.targets if self.targets and part.targets else part.targets,
            rho=self.rho if self.rho and part.name.startswith("apgd") else part.rho,
        )

    def settings(self, norm: Norm = "linf") -> dict[str, Any]:
        """Return the hyper-parameters as JSON values, with AutoAttack's defaults, for records.

        A value is None if the parts of a set differ.
        """
        alone = self.attack not in SETS
        parts = self.parts(norm)
        return super().settings(norm) | {
            "iterations": _common(part.iterations for part in parts if alone or part.gradient),
            "restarts": parts[0].restarts if alone else None,
            "targets": _common(part.targets for part in parts if part.targets),
            "rho": _common(part.rho for part in parts if part.name.startswith("apgd")),
            "square_iterations": None
            if alone
            else _common(part.iterations for part in parts if not part.gradient),
        }

    @property
    def versions(self) -> dict[str, str]:
        """The version of pyautoattack."""
        return {"pyautoattack": version("pyautoattack")}

    def queries(self, num_classes: int, norm: Norm = "linf") -> Queries:
        """Return the largest number of passes for one batch, if no member is fooled."""
        total = sum((part.queries(num_classes) for part in self.parts(norm)), Queries(1, 0))
        if self.protocol == "published":
            # AutoAttack's checks query the first batch seven times. Each attack adds two queries.
            total = total + Queries(7 + 2 * len(self.parts(norm)), 0)
        return total

    def passes(self, num_classes: int, norm: Norm, size: int) -> Queries:
        """Return `queries` times the batches that the published protocol makes of `size` images."""
        batches = math.ceil(size / self.batch_size) if self.batch_size else 1
        return self.queries(num_classes, norm).times(batches)

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        """Run the parts in order, each against the members that are still correct."""
        parts = self.parts(threat.norm)
        for part in parts:
            check_part(part, threat, target.natural.shape)
        if self.protocol == "published":
            return run_published(self.registered, parts, target, threat, seed, self.batch_size)
        # With clean members, every query has all attacked members.
        together = target.batch_dependent or isinstance(target.defense, Among)
        batch = FrozenBatch(target, whole=self.ask == "whole" or together)
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


def _common(values: Iterable[_T]) -> _T | None:
    """Return the common value; None if there are no values or they differ."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None
