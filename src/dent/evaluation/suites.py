"""The dynamic suite by name and budget, and how to recognize it in a specification."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from dent.attacks import Attack
from dent.errors import ConfigError, UnknownNameError
from dent.evaluation.attack_specs import attack_of, attack_spec
from dent.evaluation.records.spec import AttackSpec, Budget, EvaluationSpec
from dent.evaluation.suite_attacks import (
    BUDGETS,
    BY_ATTACK,
    SUITES,
    VERSION,
    VERSION_OF,
    VERSIONS,
    SuiteAttack,
    SuiteName,
    name_of,
)
from dent.threat import Norm, ThreatModel


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
        for each in VERSIONS[VERSION_OF[name]]
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


_suite = cache(suite)
"""The same attacks at every call, which are described here and do not run."""


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
        version, budget = VERSION_OF[named[0]], named[1]
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
    for attack in _suite(name_of(version), budget, mixed=_has_clean_members(spec)):
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
            expected = suite_specs(budget, spec.threat.norm, _has_clean_members(spec), version)
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
    if coverage is None or coverage.version < BY_ATTACK:
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
    return {name: _representative(same, other) for name, other in same.items()}


def _representative(same: Mapping[str, str], name: str) -> str:
    return _representative(same, same[name]) if name in same else name


def _made(entry: AttackSpec) -> Attack | None:
    try:
        return attack_of(entry)
    except ConfigError:  # a custom attack, or one of an unknown version
        return None


def _has_clean_members(spec: EvaluationSpec) -> bool:
    return spec.settings.mix is not None


@cache
def suite_specs(budget: Budget, norm: Norm, mixed: bool, version: int) -> tuple[AttackSpec, ...]:
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
