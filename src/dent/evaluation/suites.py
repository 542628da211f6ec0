"""The dynamic suite: the attacks that a verdict needs.

A suite is data. Budgets differ only in how long each attack runs. The exception is the attack with
`begins`, which only larger budgets have.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final, Literal, get_args

from dent.attacks import Attack, make
from dent.attacks.autoattack.parts import SETS
from dent.errors import ConfigError, UnknownNameError
from dent.evaluation.attack_specs import attack_of, attack_spec
from dent.evaluation.records.spec import AttackSpec, EvaluationSpec
from dent.threat import Norm, ThreatModel

SuiteName = Literal["dynamic", "dynamic-2", "dynamic-1"]
"""`dynamic` is the newest version. Older versions have a number."""
Budget = Literal["small", "standard", "full"]
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
_BY_ATTACK: Final = 3
"""The first version of the suite that runs attack by attack."""
VERSION: Final = max(VERSIONS)
"""The newest version of the suite, which is called `dynamic`."""


_NAMES: Final[Mapping[int, SuiteName]] = {
    VERSION: "dynamic",
    2: "dynamic-2",
    1: "dynamic-1",
}
_VERSION_OF: Final[Mapping[str, int]] = {name: version for version, name in _NAMES.items()}


def name_of(version: int) -> SuiteName:
    """Return the name of a version of the suite."""
    return _NAMES[version]


def suite_attacks(
    name: SuiteName = "dynamic", budget: Budget = "small", *, mixed: bool = False
) -> tuple[SuiteAttack, ...]:
    """Return the attacks of a suite under a budget, as the suite lists them.

    Args:
        name: `dynamic`, or an older version of it.
        budget: `small`, `standard` or `full`.
        mixed: Whether batches also have clean members (`Settings.mix`).

    Raises:
        UnknownNameError: There is no such suite or budget.
    """
    if name not in SUITES:
        raise UnknownNameError(f"no suite is called {name!r}; there is {', '.join(SUITES)}")
    if budget not in BUDGETS:
        raise UnknownNameError(f"no budget is called {budget!r}; there are {', '.join(BUDGETS)}")
    level = BUDGETS.index(budget)
    return tuple(
        each
        for each in VERSIONS[_VERSION_OF[name]]
        if BUDGETS.index(each.begins) <= level and (mixed or not each.on_clean)
    )


def suite(
    name: SuiteName = "dynamic", budget: Budget = "small", *, mixed: bool = False
) -> tuple[Attack, ...]:
    """Return the attacks of a suite, for a `Subject`.

    Args:
        name: `dynamic`, or an older version of it, to check an older run.
        budget: `small`, `standard` or `full`.
        mixed: Whether batches also have clean members (`Settings.mix`). If so, the suite has an
            attack on those as well.

    Raises:
        UnknownNameError: There is no such suite or budget.

    Example:
        >>> subject = Subject(model, dataset, {"dent+": Dent(model)}, suite("dynamic"), threat)
        >>> evaluate(subject).defenses["dent+"].verdict
    """
    return tuple(each.make(budget) for each in suite_attacks(name, budget, mixed=mixed))


@dataclass(frozen=True)
class Coverage:
    """The suite as an evaluation runs it.

    Attributes:
        version: Version of the suite.
        budget: The largest budget of which all attacks are covered.
        ran_as: For each attack of the suite, the name of the attack that covers it.
    """

    version: int
    budget: Budget
    ran_as: Mapping[str, str]


def coverage_of(spec: EvaluationSpec) -> Coverage | None:
    """Return the suite and budget that an evaluation runs; None if it runs no whole suite.

    These are the suite and budget with exactly the attacks of the evaluation. If there are none,
    it is the newest suite that its attacks cover, with the largest budget that they cover.
    """
    named = named_suite(spec)
    if named is not None:
        version, budget = _VERSION_OF[named[0]], named[1]
        return Coverage(version, budget, {attack.name: attack.name for attack in spec.attacks})
    for version in sorted(VERSIONS, reverse=True):
        for budget in reversed(BUDGETS):
            covered = ran_as(spec, budget, version)
            if covered is not None:
                return Coverage(version, budget, covered)
    return None


def ran_as(spec: EvaluationSpec, budget: Budget, version: int = VERSION) -> dict[str, str] | None:
    """Return which attacks of an evaluation cover those of the suite.

    An attack covers another if it is of the same kind and runs at least as long. So a run with a
    larger budget, or one that names every attack individually, is also a run of the suite.

    Returns:
        By attack of the suite, the name of the one that covers it; None if one is not covered.
    """
    covered: dict[str, str] = {}
    norm = spec.threat.norm
    for attack in suite(name_of(version), budget, mixed=_has_clean_members(spec)):
        name = next((entry.name for entry in spec.attacks if _covers(entry, attack, norm)), None)
        if name is None:
            return None
        covered[attack.name] = name
    return covered


def budget_of(spec: EvaluationSpec) -> Budget | None:
    """Return the largest budget of the whole suite in an evaluation; None if there is none."""
    coverage = coverage_of(spec)
    return None if coverage is None else coverage.budget


def named_suite(spec: EvaluationSpec) -> tuple[SuiteName, Budget] | None:
    """Return the suite and budget with exactly the attacks of an evaluation, in any order.

    None if there are none.
    """
    recorded = _described(spec.attacks)
    for version in sorted(VERSIONS, reverse=True):
        for budget in BUDGETS:
            expected = _asked(budget, spec.threat.norm, _has_clean_members(spec), version)
            if _described(expected) == recorded:
                return name_of(version), budget
    return None


def scheduled(spec: EvaluationSpec, *, plain_static: bool, no_steps: bool) -> EvaluationSpec:
    """Return an evaluation with its schedule: by attack for a whole suite, otherwise by batch.

    A whole suite runs by attack only if the run has a static model.

    Args:
        spec: The evaluation, by batch.
        plain_static: Whether the static model never adapts. If so, attacks that differ only in how
            they treat the adaptation are the same on it.
        no_steps: Whether no defense takes steps. If so, the attacks that run on the static model
            come first on the defenses, too.
    """
    coverage = coverage_of(spec) if spec.has_static else None
    if coverage is None or coverage.version < _BY_ATTACK:
        return spec
    same = _same_on_static(spec) if plain_static else {}
    attacks = spec.attacks
    if no_steps:
        attacks = tuple(sorted(attacks, key=lambda attack: attack.name in same))
    return spec.model_copy(
        update={"schedule": "by-attack", "same_on_static": same, "attacks": attacks}
    )


def _same_on_static(spec: EvaluationSpec) -> dict[str, str]:
    entries = [entry for entry in spec.attacks if entry.protocol == "frozen"]
    attacks = [attack for entry in entries if (attack := _made(entry)) is not None]
    return same_on_static(attacks, len(spec.dataset.classes), spec.threat.norm)


def same_on_static(attacks: Sequence[Attack], num_classes: int, norm: Norm) -> dict[str, str]:
    """Return, for each attack that is redundant on a static model, the attack that covers it.

    Args:
        attacks: The attacks, with different names.
        num_classes: Number of classes.
        norm: Norm of the threat model.
    """
    there = {attack.name: attack.on_static() for attack in attacks}
    cost = {attack.name: sum(attack.queries(num_classes, norm)) for attack in attacks}
    same: dict[str, str] = {}
    # Of equal attacks, the cheapest stays.
    for name in sorted(there, key=lambda each: -cost[each]):
        for other, candidate in there.items():
            if other != name and other not in same and candidate.covers(there[name], norm):
                same[name] = other
                break
    return {name: _last(same, other) for name, other in same.items()}


def _last(same: Mapping[str, str], name: str) -> str:
    return _last(same, same[name]) if name in same else name


def _made(entry: AttackSpec) -> Attack | None:
    try:
        return attack_of(entry)
    except ConfigError:  # a custom attack, or one of an unknown version
        return None


def looks_through(spec: EvaluationSpec) -> bool:
    """Return whether an attack of an evaluation follows the exact gradient."""
    return any(map(is_exact, spec.attacks))


def is_exact(attack: AttackSpec) -> bool:
    """Return whether an attack follows the exact gradient, through all steps of the adaptation."""
    unrolled = attack.attack == "adaptive-unrolled" and not attack.settings.get("smooth_signs")
    return unrolled or attack.settings.get("unrolled") is True


Stand = Literal["white-box", "transfer", "other"]
"""The gradients that an attack tests: those of the defense, or of other models. `other`: it may
test neither, because it attacks with fewer steps, starts from the result of another attack, also
queries (AutoAttack's sets), or is a custom attack."""


def stand_of(attack: AttackSpec, *, on_static: bool = False) -> Stand:
    """Return whose gradients an attack tests.

    Args:
        attack: The attack.
        on_static: Whether it attacks the static model. `adaptive-transfer` is a white-box attack
            there, because it follows the gradients of the static model.
    """
    if attack.attack == "surrogates" or (attack.attack == "adaptive-transfer" and not on_static):
        return "transfer"
    weaker = attack.attack == "adaptive-fewer-steps" or attack.settings.get("warm") is True
    return "other" if weaker or _may_query(attack) else "white-box"


def stands_of(
    attacks: Sequence[AttackSpec], ran: Collection[str], *, on_static: bool = False
) -> dict[str, Stand]:
    """Return for each attack whose gradients it tests, as `stand_of` does.

    If no white-box attack ran, sets and custom attacks count as white-box. Nothing else is then
    known about the gradients of the defense.

    Args:
        attacks: The attacks of a run.
        ran: Names of the attacks that ran on the defense.
        on_static: Whether they attack the static model.
    """
    stands = {attack.name: stand_of(attack, on_static=on_static) for attack in attacks}
    follows = (
        stands[attack.name] == "white-box" and kind_of_attack(attack) != "queries"
        for attack in attacks
        if attack.name in ran
    )
    if any(follows):
        return stands
    return stands | {attack.name: "white-box" for attack in attacks if _may_query(attack)}


def _may_query(attack: AttackSpec) -> bool:
    """Return whether an attack may break members by queries as well as by gradients."""
    return attack.attack is None or attack.attack in SETS


AttackKind = Literal["white-box", "queries", "transfer", "other"]


def kind_of_attack(attack: AttackSpec) -> AttackKind | None:
    """Return what an attack follows, according to its record; None for a custom attack."""
    if attack.attack is None:
        return None
    return "queries" if attack.attack in ("square", "rays") else stand_of(attack)


def is_black_box(attack: AttackSpec, *, took_gradients: bool) -> bool:
    """Return whether an attack only queries the defense.

    Args:
        attack: The attack.
        took_gradients: Whether the attack computed gradients. This decides only for a custom
            attack, because a gradient attack of the suite computes none if earlier attacks fooled
            all members.
    """
    kind = kind_of_attack(attack)
    return not took_gradients if kind is None else kind == "queries"


def is_model_space(attack: AttackSpec) -> bool:
    """Return whether an attack targets the models that a defense may adapt to."""
    return attack.attack in ("fpa", "gmsa-avg", "gmsa-min")


def _has_clean_members(spec: EvaluationSpec) -> bool:
    return spec.settings.mix is not None


@cache
def _asked(budget: Budget, norm: Norm, mixed: bool, version: int) -> tuple[AttackSpec, ...]:
    """Return the suite as it would be recorded. The record does not depend on eps."""
    threat = ThreatModel(norm, 1.0)
    attacks = suite(name_of(version), budget, mixed=mixed)
    return tuple(attack_spec(attack, threat) for attack in attacks)


def _described(attacks: Sequence[AttackSpec]) -> dict[str, tuple[str | None, dict[str, Any]]]:
    return {attack.name: (attack.attack, attack.settings) for attack in attacks}


def _covers(recorded: AttackSpec, wanted: Attack, norm: Norm) -> bool:
    try:
        return attack_of(recorded).covers(wanted, norm)
    except ConfigError:  # a custom attack, or one of an unknown version
        return False
