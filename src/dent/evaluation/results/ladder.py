"""Which rung of the gradient ladder went furthest against a defense."""

from collections.abc import Mapping, Sequence
from typing import Any

from dent.attacks.adaptive import RUNGS
from dent.evaluation.records.spec import AttackSpec, EvaluationSpec
from dent.evaluation.results.result import AttackSummary, Count, Ladder, LadderRung
from dent.support.rounding import percent


def ladder_of(spec: EvaluationSpec, attacks: Sequence[AttackSummary]) -> Ladder | None:
    """Compare the rungs by what the best attack of each left of a defense.

    What was found against the static model and submitted to the defense stands on the rung
    `transfer`.

    Args:
        spec: What was evaluated; which attack stands on which rung is in its attacks' settings.
        attacks: Of one defense. Those that were not available to it do not count.

    Returns:
        None where fewer than two rungs attacked the defense, or not all of them the same batches
        yet: there is nothing to compare.
    """
    on = {each.name: _rung_of(each) for each in spec.attacks}
    rungs = []
    for rung in RUNGS:
        tried = [found for found in attacks if found.served.total and _rung(found, on) == rung]
        if tried:
            best = min(tried, key=lambda found: found.served.correct)
            rungs.append(LadderRung(rung=rung, attack=best.attack or "", served=best.served))
    if len(rungs) < 2 or len({each.served.total for each in rungs}) > 1:
        return None
    # Of equals the first, which is the cheapest.
    won = min(rungs, key=lambda rung: rung.served.correct)
    return Ladder(rungs=tuple(rungs), won=won.rung, sentence=_sentence(rungs, won))


def _rung_of(attack: AttackSpec) -> str | None:
    name = attack.attack or ""
    return name.removeprefix("adaptive-") if name.startswith("adaptive-") else None


def _rung(found: AttackSummary, on: Mapping[str, Any]) -> object:
    if found.kind == "transfer":
        return "transfer"
    return on.get(found.attack or "") if found.ran else None


def _sentence(rungs: Sequence[LadderRung], won: LadderRung) -> str:
    others = ", ".join(
        f"{each.rung} {_share(each.served)}" for each in rungs if each.rung != won.rung
    )
    word = "furthest"
    if all(each.served.correct == won.served.correct for each in rungs):
        word = "as far as every other"
    return (
        f"Of the gradient ladder, {won.rung} went {word}: {_share(won.served)} of "
        f"{won.served.total} left; {others}."
    )


def _share(found: Count) -> str:
    return percent(found.share or 0.0)
