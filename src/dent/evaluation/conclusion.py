"""The verdict on a defense: what the dynamic suite allows to be said, and what stands in the way.

A robust accuracy is an upper bound, so the burden lies with whoever claims a gain: whatever casts
doubt on the defense's numbers stands in the way of a gain, until the attack that would settle it
has been run. That no gain was shown needs no such proof. That a defense is harmful is a claim about
the static model's numbers: what casts doubt on those stands in its way.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, Literal

from dent.evaluation.diagnostics import CERTIFICATE
from dent.evaluation.result import DefenseResult, Diagnostic, Difference, Gate, Verdict
from dent.evaluation.scoring import Scores
from dent.evaluation.spec import STATIC, EvaluationSpec
from dent.evaluation.suite import Budget, budget_of, ran_as
from dent.evaluation.verdict import MIN_CLUSTERS, by_sample, natural_difference

Ruling = Literal["robust gain", "no gain", "harmful", "inconclusive"]

UNFINISHED: Final = "unfinished"
FEW_BATCHES: Final = "few batches"

FOLLOW_UPS: Final[dict[str, tuple[str, ...]]] = {
    "randomized": ("eot",),
    "carries state": (),
    "not logits": ("square", "rays"),
    "zero gradient": ("adaptive-bpda", "square", "rays"),
    "batch dependent": ("gmsa-avg", "gmsa-min"),
    "undeclared dependence": (),
    "black-box beats white-box": ("adaptive-bpda", "adaptive-unrolled", "square", "rays"),
    "transfer beats white-box": ("adaptive-transfer", "adaptive-unrolled", "gmsa-min"),
    "more iterations still help": (),
    "huge eps does not break all": ("adaptive-bpda", "square", "rays"),
    "served differs from claimed": ("eot",),
}
"""By diagnostic, the members of the suite that must have attacked a defense that raises it; none
where no attack of the suite can settle it. A prediction that is not finite is no such doubt: it
counts as wrong."""


def gates_of(diagnostics: Sequence[Diagnostic], ran: Collection[str]) -> tuple[Gate, ...]:
    """The gates that diagnostics put up.

    Args:
        diagnostics: Of one defense.
        ran: Members of the suite that attacked it; those that were not available to it did not.
    """
    return tuple(_gates(diagnostics, ran))


def conclude(
    budget: Budget,
    difference: Difference,
    natural: Difference,
    gates: tuple[Gate, ...],
    static_gates: tuple[Gate, ...],
) -> Verdict:
    """Rule on a defense.

    Args:
        budget: Of the suite that was run.
        difference: Of the worst cases, to the static model's.
        natural: Of the natural accuracies.
        gates: Of the defense.
        static_gates: Of the static model.
    """
    side, natural_side = _side(difference), _side(natural)
    opened = [gate.name for gate in gates if gate.open]
    doubts = [gate.name for gate in static_gates if gate.open]
    ruling: Ruling
    if UNFINISHED in opened or side == "unknown":
        ruling, why = "inconclusive", "the suite has not been run to its end"
        if side == "unknown":
            why = "no batch has been through all of the suite"
    elif side == "above" and opened:
        ruling = "inconclusive"
        why = f"the defended worst case is higher, but open: {', '.join(opened)}"
    elif side == "above":
        ruling, why = "robust gain", "the whole interval of the difference lies above 0"
    elif side == "below" and doubts:
        ruling = "inconclusive"
        why = f"the defended worst case is lower, but open at the static model: {', '.join(doubts)}"
    elif side == "below":
        ruling, why = "harmful", "robust accuracy is lower than the static model's"
        if natural_side == "below":
            why = "robust and natural accuracy are lower than the static model's"
    elif natural_side == "below":
        ruling, why = "harmful", "natural accuracy is lower, and no robust gain was found"
    else:
        ruling, why = "no gain", "the interval of the difference contains 0"
        if difference.value == 0 and not difference.only_defended:
            why = "no sample is right with the defense alone, nor with the static model alone"
    return Verdict(
        ruling=ruling,
        budget=budget,
        gates=gates,
        static_gates=static_gates,
        natural=natural,
        sentence=f"{ruling[0].upper()}{ruling[1:]} under the dynamic suite ({budget}): {why}.",
    )


def with_verdicts(
    results: Mapping[str, DefenseResult],
    scores: Mapping[str, Scores],
    spec: EvaluationSpec,
    *,
    complete: bool,
) -> dict[str, DefenseResult]:
    """Give each defense its verdict, where the whole suite is in the plan and a static model too.

    Args:
        results: By name, as far as they are.
        scores: By name.
        spec: What was evaluated.
        complete: Whether all that was planned is recorded.
    """
    budget = budget_of(spec)
    if budget is None or STATIC not in results:
        return dict(results)
    members = ran_as(spec, budget) or {}
    end = () if complete else (_unfinished(),)
    static_gates = gates_of(results[STATIC].diagnostics, _ran(results[STATIC], members)) + end
    judged = dict(results)
    for name, found in results.items():
        if found.difference is None:
            continue
        own = gates_of(found.diagnostics, _ran(found, members))
        few = _few_batches(found, len(scores[name].whole))
        natural = natural_difference(
            scores[STATIC], scores[name], found.dependence, bootstrap_seed(spec)
        )
        verdict = conclude(budget, found.difference, natural, own + few + end, static_gates)
        judged[name] = found.model_copy(update={"verdict": verdict})
    return judged


def bootstrap_seed(spec: EvaluationSpec) -> int:
    """What batches are drawn anew with: fixed by what was evaluated."""
    return int(spec.identity[:12], 16)


def _side(found: Difference) -> Literal["above", "below", "level", "unknown"]:
    if found.interval is None:
        return "unknown"
    low, high = found.interval
    return "above" if low > 0 else "below" if high < 0 else "level"


def _gates(diagnostics: Sequence[Diagnostic], ran: Collection[str]) -> Iterator[Gate]:
    for found in diagnostics:
        if found.name == CERTIFICATE:
            if found.state != "passed":
                yield Gate(name=CERTIFICATE, open=True, follow_ups=(), sentence=found.sentence)
        elif found.raised and found.name in FOLLOW_UPS:
            yield _followed(found.name, ran)


def _followed(name: str, ran: Collection[str]) -> Gate:
    asked = FOLLOW_UPS[name]
    done = tuple(attack for attack in asked if attack in ran)
    missing = [attack for attack in asked if attack not in ran]
    if not asked:
        sentence = "No attack of the suite settles it."
    elif missing:
        sentence = f"It takes {', '.join(missing)}, which the defense does not offer, or is undone."
    else:
        sentence = f"It was followed up by {', '.join(done)}."
    return Gate(name=name, open=bool(missing) or not asked, follow_ups=done, sentence=sentence)


def _unfinished() -> Gate:
    return Gate(
        name=UNFINISHED, open=True, follow_ups=(), sentence="Some of what was planned is undone."
    )


def _few_batches(found: DefenseResult, batches: int) -> tuple[Gate, ...]:
    """An interval that takes the members of a batch for independent is too narrow for a claim."""
    if by_sample(found.dependence) or batches >= MIN_CLUSTERS:
        return ()
    sentence = (
        f"Members of a batch share an adaptation, and {batches} batches are too few for an "
        f"interval that allows for it: it takes {MIN_CLUSTERS}."
    )
    return (Gate(name=FEW_BATCHES, open=True, follow_ups=(), sentence=sentence),)


def _ran(found: DefenseResult, members: Mapping[str, str]) -> set[str]:
    """The members of the suite that attacked a defense, in all batches that are recorded."""
    own = {summary.attack for summary in found.attacks if summary.ran}
    return {member for member, attack in members.items() if attack in own}
