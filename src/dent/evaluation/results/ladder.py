"""Find the rung of the gradient ladder that broke the most members of a defense."""

from collections.abc import Mapping, Sequence
from typing import Any

from dent.attacks.adaptive import RUNGS
from dent.evaluation.records.spec import AttackSpec, EvaluationSpec
from dent.evaluation.results.result import AttackSummary, Count, Ladder, LadderRung
from dent.support.rounding import percent


def ladder_of(spec: EvaluationSpec, attacks: Sequence[AttackSummary]) -> Ladder | None:
    """Return a comparison of the rungs, by what the best attack on each left correct.

    Adversarial images of the static model are on the rung `transfer`.

    Args:
        spec: The specification. The name of an attack contains its rung.
        attacks: The attacks on one defense. Attacks that were not available for it do not count.

    Returns:
        None if fewer than two rungs attacked the same batches, or if the best attack on a rung left
        out members that earlier attacks broke: what it left is then not its own doing. An attack
        that has run on fewer batches than another does not count.
    """
    rungs_by_attack = {attack.name: _rung_of_spec(attack) for attack in spec.attacks}
    on_a_rung = [
        (rung, summary)
        for summary in attacks
        if (rung := _rung_of_summary(summary, rungs_by_attack)) in RUNGS
    ]
    total = max((summary.served.total for _, summary in on_a_rung), default=0)
    rungs, carried = [], 0
    for rung in RUNGS:
        tried = [
            summary for of, summary in on_a_rung if of == rung and 0 < summary.served.total == total
        ]
        if tried:
            best = min(tried, key=lambda summary: summary.served.correct)
            rungs.append(LadderRung(rung=rung, attack=best.attack or "", served=best.served))
            carried += best.carried
    if carried or len(rungs) < 2:
        return None
    # Among equal rungs, the first is the cheapest.
    won = min(rungs, key=lambda rung: rung.served.correct)
    return Ladder(rungs=tuple(rungs), won=won.rung, sentence=_sentence(rungs, won))


def _rung_of_spec(attack: AttackSpec) -> str | None:
    name = attack.attack or ""
    if attack.settings.get("smooth_signs"):  # its gradient is not the rung's
        return None
    return name.removeprefix("adaptive-") if name.startswith("adaptive-") else None


def _rung_of_summary(summary: AttackSummary, rungs_by_attack: Mapping[str, Any]) -> object:
    if summary.kind == "transfer":
        return "transfer"
    return rungs_by_attack.get(summary.attack or "") if summary.ran else None


def _sentence(rungs: Sequence[LadderRung], won: LadderRung) -> str:
    others = ", ".join(
        f"{rung.rung} {_share(rung.served)}" for rung in rungs if rung.rung != won.rung
    )
    place = "the most"
    if all(rung.served.correct == won.served.correct for rung in rungs):
        place = "as many as every other"
    return (
        f"On the gradient ladder, {won.rung} broke {place}: {_share(won.served)} of "
        f"{won.served.total} are left; {others}."
    )


def _share(count: Count) -> str:
    return percent(count.share or 0.0)
