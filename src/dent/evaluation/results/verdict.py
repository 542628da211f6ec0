"""The verdict on a defense: what the dynamic suite allows to be said, and what stands in the way.

A robust accuracy is an upper bound, so the burden lies with whoever claims a gain: whatever casts
doubt on the defense's numbers stands in the way, until what caused the doubt is gone. That no gain
was shown needs no such proof. That a defense is harmful is a claim that its numbers are not too
low, and the static model's not too high: what casts doubt on that stands in its way.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.evaluation.results.diagnostics import CERTIFICATE, stands_in
from dent.evaluation.results.result import DefenseResult, Diagnostic, Difference, Gate, Verdict
from dent.evaluation.results.scoring import Scores
from dent.evaluation.results.symptoms import Symptoms, symptoms_of
from dent.evaluation.results.worst_case import MIN_CLUSTERS, by_sample, natural_difference
from dent.evaluation.suites import VERSION, Budget, coverage_of
from dent.support.plural import agreeing, counted

Ruling = Literal["robust gain", "no gain", "harmful", "inconclusive"]

UNFINISHED: Final = "unfinished"
_GONE: Final = "What raised it is gone."
FEW_BATCHES: Final = "few batches"

HUGE_EPS: Final = "huge eps does not break all"
RULES: Final = 2
"""Version of these rules."""

Ground = Literal["exact gradient certified", "surrogate gradient, unbeaten"]


@dataclass(frozen=True)
class Evidence:
    """What the records of a defense say, for the gates to be judged by.

    Attributes:
        ran: Members of the suite that attacked it; those that were not available to it did not.
        symptoms: Signs that attacks by its gradient were weaker than it.
        drawn: Whether every submission was repeated, some draws choosing and others scoring.
        stands_in: Whether a gradient that is not exact still says where what is served moves.
    """

    ran: Collection[str]
    symptoms: Symptoms
    drawn: bool
    stands_in: bool


def _ran(*names: str) -> Callable[[Evidence], str | None]:
    """Answered once these members of the suite have attacked the defense."""

    def problem(evidence: Evidence) -> str | None:
        missing = [name for name in names if name not in evidence.ran]
        return f"it takes {', '.join(missing)}, which did not attack it" if missing else None

    return problem


def _by_expectation(evidence: Evidence) -> str | None:
    if not evidence.drawn:
        return "every submission must be repeated under several seeds"
    return _ran("eot")(evidence)


def _unbeaten(evidence: Evidence) -> str | None:
    found = evidence.symptoms
    for kind, ahead in (("by queries alone", found.black_box), ("on other models", found.transfer)):
        beaten = found.beaten(ahead)
        if beaten is None:
            return f"attacks by the gradient and attacks {kind} have not both run"
        if beaten:
            return (
                f"attacks {kind} still break {counted(ahead or 0, 'member')} more than all by "
                "its gradient"
            )
    return None


def _sighted(evidence: Evidence) -> str | None:
    blind = evidence.symptoms.blind
    if blind is None:
        return "the records do not say for whom attacks had a gradient"
    if blind:
        return (
            f"{counted(blind, 'member')} {agreeing(blind, 'stand')} for which no attack "
            "had a gradient"
        )
    return _unbeaten(evidence)


def _never(_: Evidence) -> str | None:
    return "no attack of the suite settles it"


SYMPTOMS: Final[Mapping[str, Callable[[Evidence], str | None]]] = {
    "randomized": _by_expectation,
    "carries state": _never,
    "not logits": _sighted,
    "zero gradient": _sighted,
    "no gradient where members stand": _sighted,
    "batch dependent": _ran("gmsa-avg", "gmsa-min"),
    "undeclared dependence": _never,
    "black-box beats white-box": _unbeaten,
    "transfer beats white-box": _unbeaten,
    "more iterations still help": _never,
    HUGE_EPS: _never,
    "served differs from claimed": lambda it: None if it.drawn else _never(it),
    "served differs with gradients": _never,
    "cannot be copied": _never,
}
"""By diagnostic, what is still wrong after all that has run; None where nothing is. A prediction
that is not finite is no such doubt: it counts as wrong."""

_SCORING: Final = ("randomized", "served differs with gradients")
"""What casts doubt on a defense's numbers from below."""


def gates_of(diagnostics: Sequence[Diagnostic], evidence: Evidence) -> tuple[Gate, ...]:
    """The gates that diagnostics put up.

    Args:
        diagnostics: Of one defense.
        evidence: What its records say.
    """
    return tuple(_gates(diagnostics, evidence))


def ground_of(diagnostics: Sequence[Diagnostic], evidence: Evidence) -> Ground | None:
    """What a gain could stand on: a gradient that is exact, or one that nothing has beaten."""
    states = {found.name: found.state for found in diagnostics}
    if states.get(CERTIFICATE) == "passed":
        return "exact gradient certified"
    unbeaten = _sighted(evidence) is None and states.get(HUGE_EPS) == "passed"
    return "surrogate gradient, unbeaten" if unbeaten and evidence.stands_in else None


def conclude(
    budget: Budget,
    difference: Difference,
    natural: Difference,
    gates: tuple[Gate, ...],
    static_gates: tuple[Gate, ...],
    *,
    ground: Ground | None = "exact gradient certified",
    version: int = VERSION,
) -> Verdict:
    """Rule on a defense.

    Args:
        budget: Of the suite that was run.
        difference: Of the worst cases, to the static model's.
        natural: Of the clean accuracies.
        gates: Of the defense.
        static_gates: Of the static model.
        ground: What a gain would stand on. Without one the gate of the certificate is open.
        version: Of the suite.
    """
    ruling, why = _ruling(difference, natural, gates, static_gates, ground)
    return Verdict(
        ruling=ruling,
        version=version,
        rules=RULES,
        budget=budget,
        ground=ground if ruling == "robust gain" else None,
        gates=gates,
        static_gates=static_gates,
        natural=natural,
        sentence=(
            f"{ruling[0].upper()}{ruling[1:]} under the dynamic suite ({budget}): {why}. Suite "
            f"{version}, rules {RULES}."
        ),
    )


def _ruling(
    difference: Difference,
    natural: Difference,
    gates: tuple[Gate, ...],
    static_gates: tuple[Gate, ...],
    ground: Ground | None,
) -> tuple[Ruling, str]:
    side, natural_side = _side(difference), _side(natural)
    opened = [gate.name for gate in gates if gate.open]
    if side == "unknown" or UNFINISHED in opened:
        why = "no batch has been through all of the suite"
        return "inconclusive", why if side == "unknown" else "the suite has not run to its end"
    if side == "above":
        return _above(opened, ground)
    if side == "below":
        return _below(natural_side, opened, static_gates)
    if natural_side == "below":
        return "harmful", "natural accuracy is lower, and no robust gain was found"
    why = "the interval of the difference contains 0"
    if difference.value == 0 and not difference.only_defended:
        why = "no sample is right with the defense alone, nor with the static one alone"
    return "no gain", why


def _above(opened: Sequence[str], ground: Ground | None) -> tuple[Ruling, str]:
    if opened or ground is None:
        left = ", ".join(opened) or "no gradient is known"
        return "inconclusive", f"the defended worst case is higher, but open: {left}"
    return "robust gain", f"the whole interval of the difference lies above 0 ({ground})"


def _below(
    natural_side: str, opened: Sequence[str], static_gates: tuple[Gate, ...]
) -> tuple[Ruling, str]:
    doubts = [f"{gate.name} of the static model" for gate in static_gates if gate.open]
    doubts += [name for name in opened if name in _SCORING]
    if doubts:
        return "inconclusive", f"the defended worst case is lower, but open: {', '.join(doubts)}"
    if natural_side == "below":
        return "harmful", "robust and natural accuracy are lower than the static model's"
    return "harmful", "robust accuracy is lower than the static model's"


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
    coverage = coverage_of(spec)
    if coverage is None or STATIC not in results:
        return dict(results)
    evidence = {
        name: evidence_of(found, scores[name], spec, coverage.ran_as)
        for name, found in results.items()
    }
    end = () if complete else (_unfinished(),)
    static_gates = gates_of(results[STATIC].diagnostics, evidence[STATIC]) + end
    judged = dict(results)
    for name, found in results.items():
        if found.difference is None:
            continue
        own = gates_of(found.diagnostics, evidence[name])
        few = _few_batches(found, len(scores[name].whole))
        natural = natural_difference(
            scores[STATIC], scores[name], found.dependence, bootstrap_seed(spec)
        )
        verdict = conclude(
            coverage.budget,
            found.difference,
            natural,
            own + few + end,
            static_gates,
            ground=ground_of(found.diagnostics, evidence[name]),
            version=coverage.version,
        )
        judged[name] = found.model_copy(update={"verdict": verdict})
    return judged


def evidence_of(
    found: DefenseResult, scores: Scores, spec: EvaluationSpec, ran_as: Mapping[str, str]
) -> Evidence:
    """Read off the records of a defense what its gates are judged by.

    Args:
        found: The defense, as far as it is.
        scores: Its records, scored.
        spec: What was evaluated.
        ran_as: By member of the suite, the attack that covers it.
    """
    own = {summary.attack for summary in found.attacks if summary.ran}
    units = [record for records in scores.records.values() for record in records]
    return Evidence(
        ran={member for member, attack in ran_as.items() if attack in own},
        symptoms=symptoms_of(scores, spec, by_sample=by_sample(found.dependence)),
        drawn=bool(units) and all(record.draws for record in units),
        stands_in=stands_in(scores.probe),
    )


def bootstrap_seed(spec: EvaluationSpec) -> int:
    """What batches are drawn anew with: fixed by what was evaluated."""
    return int(spec.identity[:12], 16)


def _side(found: Difference) -> Literal["above", "below", "level", "unknown"]:
    if found.interval is None:
        return "unknown"
    low, high = found.interval
    return "above" if low > 0 else "below" if high < 0 else "level"


def _gates(diagnostics: Sequence[Diagnostic], evidence: Evidence) -> Iterator[Gate]:
    for found in diagnostics:
        if found.name == CERTIFICATE:
            yield from _certificate(found, diagnostics, evidence)
        elif found.name == HUGE_EPS and found.state == "not-run":
            yield Gate(name=HUGE_EPS, open=True, follow_ups=(), sentence=found.sentence)
        elif found.raised and found.name in SYMPTOMS:
            problem = SYMPTOMS[found.name](evidence)
            yield Gate(
                name=found.name,
                open=problem is not None,
                follow_ups=(),
                sentence=f"{problem[0].upper()}{problem[1:]}." if problem else _GONE,
            )


def _certificate(
    found: Diagnostic, diagnostics: Sequence[Diagnostic], evidence: Evidence
) -> Iterator[Gate]:
    if found.state == "passed":
        return
    ground = ground_of(diagnostics, evidence)
    sentence = found.sentence
    if ground is not None:
        sentence += (
            " Yet over large steps it does, no attack without it breaks more, and a huge eps "
            "breaks all."
        )
    yield Gate(name=CERTIFICATE, open=ground is None, follow_ups=(), sentence=sentence)


def _unfinished() -> Gate:
    return Gate(
        name=UNFINISHED, open=True, follow_ups=(), sentence="Some of what was planned is undone."
    )


def _few_batches(found: DefenseResult, batches: int) -> tuple[Gate, ...]:
    """An interval that takes the members of a batch for independent is too narrow for a claim."""
    if by_sample(found.dependence) or batches >= MIN_CLUSTERS:
        return ()
    sentence = (
        f"Members of a batch share an adaptation, and {counted(batches, 'batch')} "
        f"{agreeing(batches, 'are')} too few for an "
        f"interval that allows for it: it takes {MIN_CLUSTERS}."
    )
    return (Gate(name=FEW_BATCHES, open=True, follow_ups=(), sentence=sentence),)
