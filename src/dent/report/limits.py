"""Sentences about what the numbers of a run do not show, for every page with the numbers."""

from collections.abc import Callable, Iterator
from typing import Final

from dent.evaluation.attack_kinds import is_exact, is_model_space
from dent.evaluation.records.spec import STATIC, AttackSpec, EvaluationSpec
from dent.evaluation.results.intervals import LEVEL_TEXT
from dent.evaluation.results.result import EvaluationResult
from dent.evaluation.suites import budget_of
from dent.report import wording
from dent.support.plural import agreeing, counted, listed
from dent.support.rounding import PLACES

_KNOWN_TO_BREAK: Final[dict[str, Callable[[AttackSpec], bool]]] = {
    "exact-gradient attack (unrolled through all adaptation steps)": is_exact,
    "attack on model space (GMSA)": is_model_space,
}


def limits(result: EvaluationResult) -> tuple[str, ...]:
    """Return sentences about what was not run and what follows from that; at least one.

    What is missing because the run is not finished, or stopped early, comes first.
    """
    return tuple(_limits(result))


def _limits(result: EvaluationResult) -> Iterator[str]:
    spec = result.spec
    if result.status == "partial":
        yield (
            f"The run is not finished: {result.units_done} of "
            f"{counted(result.units_planned, 'unit')} are "
            "recorded, and every count uses only these. Worst cases and differences use only the "
            "batches with all planned submissions."
        )
    if any(defense.decided is not None for defense in result.defenses.values()):
        yield _stopped(result)
    yield ("Robust accuracy is an upper bound: a stronger attack can only lower it.")
    if not spec.attacks:
        yield "No attack was run: all numbers are clean accuracies."
    if any(defense.name != STATIC for defense in spec.defenses):
        yield from _of_dynamic(result)
    if result.samples:
        widest = max(
            (
                defense.worst.served.interval[1] - defense.worst.served.interval[0]
                for defense in result.defenses.values()
                if defense.worst.served.interval is not None
            ),
            default=None,
        )
        if widest is not None:
            yield (
                f"{_attacked(result)} The {LEVEL_TEXT} interval of a worst case is up to "
                f"{100 * widest:{PLACES}} points wide. It accounts for the choice of samples, not "
                "for stronger attacks."
            )


def _stopped(result: EvaluationResult) -> str:
    where = "; ".join(
        f"{name}: {wording.stop(defense.decided)}"
        for name, defense in result.defenses.items()
        if defense.decided is not None
    )
    return (
        f"The run stopped early, because a gain can no longer be shown ({where}). There, worst "
        "case and difference are upper bounds."
    )


def _attacked(result: EvaluationResult) -> str:
    samples = counted(result.samples, "sample")
    if result.status == "complete":
        return f"{samples} {agreeing(result.samples, 'were')} attacked."
    attacked = max(
        count.total
        for defense in result.defenses.values()
        for count in (
            defense.worst.served,
            *(each.served for each in defense.attacks if each.kind == "attack"),
        )
    )
    return f"{attacked} of {samples} {agreeing(attacked, 'were')} attacked so far."


def _of_dynamic(result: EvaluationResult) -> Iterator[str]:
    spec = result.spec
    for spared, kinds in _spared(result).items() if spec.attacks else ():
        where = f" on {', '.join(spared)}" if spared != _dynamic(result) else ""
        missing = f"no {' and no '.join(kinds)}"
        said = f"N{missing[1:]} was run{where}{_not_counted(spec)}"
        if any(result.defenses[name].challenges for name in spared):
            said = (
                f"The run's own attacks include {missing}{where}, and what the challenges used is "
                "not known to the run"
            )
        yield (
            f"{said}. Attacks of this kind are known to break dynamic defenses that other attacks "
            "do not."
        )
    if spec.attacks and spec.has_static and budget_of(spec) is None:
        yield "There is no verdict. Only the whole dynamic suite (--suite dynamic) gives one."
    if not spec.has_static:
        yield "The static model was not attacked, so nobody knows whether a defense adds anything."
    elif not spec.settings.transfer:
        yield "The adversarial images of the static model were not submitted to the defenses."
    if spec.settings.randomness == "public":
        yield (
            "Randomness is public: attacks knew the seed of every submission, and all accuracies "
            "are under that seed."
        )
    elif any(defense.repeated is not None for defense in result.defenses.values()):
        yield (
            "Randomness is private: no attack knew the seed of a submission. An attacker who knows "
            "it may break more (--randomness public)."
        )
    not_run = dict.fromkeys(
        item.name
        for name, defense in result.defenses.items()
        for item in defense.diagnostics
        if item.state == "not-run" and (name != STATIC or len(result.defenses) == 1)
    )
    if not_run:
        yield f"Diagnostics that were not run show nothing either way: {listed(not_run, 4)}."


def _not_counted(spec: EvaluationSpec) -> str:
    custom = [attack.name for attack in spec.attacks if attack.attack is None]
    return f", not counting custom attacks ({', '.join(custom)})" if custom else ""


def _spared(result: EvaluationResult) -> dict[tuple[str, ...], list[str]]:
    """Return the kinds of attack that are known to break dynamic defenses and did not run.

    The keys are the dynamic defenses on which they did not run. An attack that was not available
    for a defense did not run on it. A defense on which the attacks stopped early is left out.
    """
    spared: dict[tuple[str, ...], list[str]] = {}
    for kind, belongs in _KNOWN_TO_BREAK.items():
        names = {attack.name for attack in result.spec.attacks if belongs(attack)}
        without = tuple(
            name
            for name in _dynamic(result)
            if result.defenses[name].decided is None
            and not any(
                attack.ran and attack.attack in names for attack in result.defenses[name].attacks
            )
        )
        if without:
            spared.setdefault(without, []).append(kind)
    return spared


def _dynamic(result: EvaluationResult) -> tuple[str, ...]:
    return tuple(name for name in result.defenses if name != STATIC)
