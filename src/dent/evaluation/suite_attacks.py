"""The attacks of the dynamic suite, as data.

Budgets differ only in how long each attack runs. The exception is the attack with `begins`, which
only larger budgets have.

The tables of older versions repeat rows of newer ones on purpose. A version never changes, so a
change of one table must not reach another.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args

from dent.attacks import Attack, make
from dent.evaluation.records.spec import Budget

SuiteName = Literal["dynamic", "dynamic-2", "dynamic-1"]
"""`dynamic` is the newest version. Older versions have a number."""
SUITES: Final[tuple[SuiteName, ...]] = get_args(SuiteName)
BUDGETS: Final[tuple[Budget, ...]] = get_args(Budget)
"""In ascending order. Every setting of a budget is at least as large as in the one before."""


@dataclass(frozen=True)
class SuiteAttack:
    """One attack of a suite.

    Attributes:
        name: Name in tables and records.
        attack: Name for `dent.attacks.make`.
        fixed: Settings that are the same in every budget.
        counts: Settings that depend on the budget: one value for each of `BUDGETS`.
        begins: The smallest budget with this attack.
        on_clean: Whether the attack targets the clean members of mixed batches. Runs without mixed
            batches leave it out.
    """

    name: str
    attack: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    begins: Budget = "small"
    on_clean: bool = False

    def settings(self, budget: Budget) -> dict[str, Any]:
        """Return the settings of the attack under a budget."""
        level = BUDGETS.index(budget)
        return {**self.fixed, **{key: values[level] for key, values in self.counts.items()}}

    def make(self, budget: Budget) -> Attack:
        """Return the attack under a budget."""
        return replace(make(self.attack, **self.settings(budget)), name=self.name)


_APGD: Final = {"iterations": (20, 50, 100), "restarts": (1, 1, 2)}
_AIMED: Final = {**_APGD, "targets": (1, 3, 9)}
_ROUNDS: Final = {
    "rounds": (3, 10, 10),
    "iterations": (10, 20, 50),
    "restarts": (1, 1, 2),
    "targets": (0, 1, 3),
}
_AIMED_ROUNDS: Final = {**_ROUNDS, "targets": (1, 5, 9)}
_LOSSES: Final = {"losses": "ce+margin"}
_MARGIN: Final = {"losses": "margin"}
_RUNS: Final = {"iterations": (20, 50, 100), "restarts": (1, 2, 4)}

DYNAMIC: Final = (
    # These follow other models only: their passes do not adapt.
    SuiteAttack(
        "adaptive-transfer",
        "adaptive-transfer",
        {"losses": "margin", "targeted": "margin"},
        {"iterations": (20, 50, 100), "targets": (9, 9, 9)},
    ),
    SuiteAttack("zero-update", "zero-update", {}, {"iterations": (20, 50, 100)}),
    # Of defenses that adapt, these break the most remaining members with few adaptations.
    SuiteAttack("gmsa-min", "gmsa-min", {}, _AIMED_ROUNDS),
    SuiteAttack("adaptive-fewer-steps", "adaptive-fewer-steps", _MARGIN, _RUNS),
    SuiteAttack(
        "adaptive-unrolled-warm",
        "adaptive-unrolled",
        {"losses": "hinge", "warm": True, "pool": 9, "rounds": 3, "stride": 0.5},
        {"iterations": (20, 50, 100), "restarts": (1, 1, 2)},
    ),
    # Of other defenses, these break the most remaining members.
    SuiteAttack("apgd-t", "apgd-t", {}, {"iterations": (20, 50, 100), "targets": (1, 3, 9)}),
    SuiteAttack("apgd-ce", "apgd-ce", {}, {"iterations": (20, 50, 100), "restarts": (1, 1, 5)}),
    # These break defenses with useless gradients, and few members of others.
    SuiteAttack(
        "surrogates",
        "surrogates",
        {},
        {"iterations": (20, 50, 100), "lessons": (2, 4, 8), "epochs": (4, 8, 8)},
    ),
    SuiteAttack("square", "square", {}, {"iterations": (100, 1000, 5000)}),
    SuiteAttack(
        "eot",
        "adaptive-stop-gradient",
        {"losses": "margin", "unmask": True},
        {"iterations": (10, 20, 50), "submissions": (3, 8, 16)},
    ),
    # These break only a few more members.
    SuiteAttack("adaptive-bpda", "adaptive-bpda", _MARGIN, _RUNS),
    SuiteAttack("fpa", "fpa", {}, _AIMED_ROUNDS),
    SuiteAttack("gmsa-avg", "gmsa-avg", {}, _AIMED_ROUNDS),
    SuiteAttack(
        "adaptive-stop-gradient",
        "adaptive-stop-gradient",
        {**_MARGIN, "unmask": True},
        {**_RUNS, "targets": (0, 3, 9)},
    ),
    SuiteAttack("adaptive-truncated", "adaptive-truncated", _MARGIN, _RUNS),
    SuiteAttack("fab-t", "fab-t", {}, {"iterations": (10, 30, 100), "targets": (1, 3, 9)}),
    SuiteAttack(
        "adaptive-unrolled",
        "adaptive-unrolled",
        {"losses": "ce"},
        {"iterations": (10, 50, 100), "restarts": (1, 1, 2), "targets": (0, 3, 9)},
    ),
    SuiteAttack(
        "gmsa-min-unrolled",
        "gmsa-min",
        {"unrolled": True},
        {"rounds": (10, 10, 10), "iterations": (20, 20, 20)},
        begins="full",
    ),
    SuiteAttack("collateral", "collateral", {}, _APGD, on_clean=True),
    SuiteAttack("rays", "rays", {}, {"iterations": (100, 1000, 5000)}),
)
"""The newest suite, in the order in which it runs: cheap and strong attacks first, according to
published records. The engine submits the adversarial images of the static model to every defense. A
version fixes the attacks, and the order of those that run on the static model. The order of the
others may change."""

_SECOND: Final = (
    # These follow other models only: their passes do not adapt.
    SuiteAttack(
        "adaptive-transfer",
        "adaptive-transfer",
        {"losses": "margin", "targeted": "margin"},
        {"iterations": (20, 50, 100), "targets": (0, 3, 9)},
    ),
    SuiteAttack("zero-update", "zero-update", {}, {"iterations": (20, 50, 100)}),
    SuiteAttack(
        "surrogates",
        "surrogates",
        {},
        {"iterations": (20, 50, 100), "lessons": (2, 4, 8), "epochs": (4, 8, 8)},
    ),
    # These adapt once per round.
    SuiteAttack("fpa", "fpa", {}, _ROUNDS),
    SuiteAttack("gmsa-avg", "gmsa-avg", {}, _ROUNDS),
    SuiteAttack("gmsa-min", "gmsa-min", {}, _ROUNDS),
    # These adapt at every pass.
    SuiteAttack("apgd-ce", "apgd-ce", {}, {"iterations": (20, 50, 100), "restarts": (1, 1, 5)}),
    SuiteAttack("apgd-t", "apgd-t", {}, {"iterations": (20, 50, 100), "targets": (1, 3, 9)}),
    SuiteAttack(
        "adaptive-stop-gradient", "adaptive-stop-gradient", {**_LOSSES, "unmask": True}, _AIMED
    ),
    SuiteAttack("adaptive-bpda", "adaptive-bpda", _LOSSES, _APGD),
    SuiteAttack("adaptive-fewer-steps", "adaptive-fewer-steps", _LOSSES, _APGD),
    SuiteAttack("adaptive-truncated", "adaptive-truncated", _LOSSES, _APGD),
    SuiteAttack("fab-t", "fab-t", {}, {"iterations": (10, 30, 100), "targets": (1, 3, 9)}),
    SuiteAttack(
        "eot",
        "adaptive-stop-gradient",
        {"losses": "margin", "unmask": True},
        {"iterations": (10, 20, 50), "submissions": (3, 8, 16)},
    ),
    # These differentiate through the adaptation.
    SuiteAttack("adaptive-unrolled", "adaptive-unrolled", {"losses": "ce"}, _AIMED),
    SuiteAttack(
        "adaptive-unrolled-warm",
        "adaptive-unrolled",
        {"losses": "margin", "warm": True},
        {"iterations": (20, 50, 100), "restarts": (1, 1, 2)},
    ),
    SuiteAttack(
        "gmsa-min-unrolled",
        "gmsa-min",
        {"unrolled": True},
        {"rounds": (10, 10, 10), "iterations": (20, 20, 20)},
        begins="full",
    ),
    SuiteAttack("collateral", "collateral", {}, _APGD, on_clean=True),
    # These only query.
    SuiteAttack("square", "square", {}, {"iterations": (100, 1000, 5000)}),
    SuiteAttack("rays", "rays", {}, {"iterations": (100, 1000, 5000)}),
)
"""Version 2 of the suite, kept for older runs."""

_FIRST: Final = (
    # These follow the static model only: their passes do not adapt.
    SuiteAttack(
        "adaptive-transfer",
        "adaptive-transfer",
        {"losses": "margin", "targeted": "margin"},
        {"iterations": (20, 50, 100), "targets": (0, 3, 9)},
    ),
    SuiteAttack("zero-update", "zero-update", {}, {"iterations": (20, 50, 100)}),
    # These adapt once per round.
    SuiteAttack("fpa", "fpa", {}, _ROUNDS),
    SuiteAttack("gmsa-avg", "gmsa-avg", {}, _ROUNDS),
    SuiteAttack("gmsa-min", "gmsa-min", {}, _ROUNDS),
    # These adapt at every pass.
    SuiteAttack("apgd-ce", "apgd-ce", {}, {"iterations": (20, 50, 100), "restarts": (1, 1, 5)}),
    SuiteAttack("apgd-t", "apgd-t", {}, {"iterations": (20, 50, 100), "targets": (1, 3, 9)}),
    SuiteAttack("adaptive-stop-gradient", "adaptive-stop-gradient", _LOSSES, _AIMED),
    SuiteAttack("adaptive-bpda", "adaptive-bpda", _LOSSES, _APGD),
    SuiteAttack("adaptive-fewer-steps", "adaptive-fewer-steps", _LOSSES, _APGD),
    SuiteAttack("adaptive-truncated", "adaptive-truncated", _LOSSES, _APGD),
    SuiteAttack("fab-t", "fab-t", {}, {"iterations": (10, 30, 100), "targets": (1, 3, 9)}),
    SuiteAttack(
        "eot",
        "adaptive-stop-gradient",
        {"losses": "margin"},
        {"iterations": (10, 20, 50), "submissions": (3, 8, 16)},
    ),
    # These differentiate through the adaptation.
    SuiteAttack("adaptive-unrolled", "adaptive-unrolled", {**_LOSSES, "warm": True}, _AIMED),
    SuiteAttack(
        "gmsa-min-unrolled",
        "gmsa-min",
        {"unrolled": True},
        {"rounds": (10, 10, 10), "iterations": (20, 20, 20)},
        begins="full",
    ),
    SuiteAttack("collateral", "collateral", {}, _APGD, on_clean=True),
    # These only query.
    SuiteAttack("square", "square", {}, {"iterations": (100, 1000, 5000)}),
    SuiteAttack("rays", "rays", {}, {"iterations": (100, 1000, 5000)}),
)
"""Version 1 of the suite, kept for older runs."""

VERSIONS: Final[Mapping[int, tuple[SuiteAttack, ...]]] = {1: _FIRST, 2: _SECOND, 3: DYNAMIC}
BY_ATTACK: Final = 3
"""The first version of the suite that runs attack by attack."""
VERSION: Final = max(VERSIONS)
"""The newest version of the suite, which is called `dynamic`."""
_NAMES: Final[Mapping[int, SuiteName]] = {
    VERSION: "dynamic",
    2: "dynamic-2",
    1: "dynamic-1",
}
VERSION_OF: Final[Mapping[str, int]] = {name: version for version, name in _NAMES.items()}
"""The version that each name of a suite means."""


def name_of(version: int) -> SuiteName:
    """Return the name of a version of the suite."""
    return _NAMES[version]
