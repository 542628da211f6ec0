"""Derive the verdict on a defense, and the gates that prevent one, from the dynamic suite.

A measured robust accuracy is only an upper bound, so a claim of a gain carries the burden of proof.
Every doubt about the defense's numbers opens a gate, which stays open until its cause is gone. "No
gain" needs no such proof. "Harmful" claims that the defense's numbers are not too low and the
static model's not too high, so doubts about either prevent this verdict. Too few batches for an
interval prevent both.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.evaluation.results.diagnostics import (
    CERTIFICATE,
    HUGE_EPS,
    SIGHTED,
    answered_classes,
    over_large_steps,
)
from dent.evaluation.results.power import detectable_gain
from dent.evaluation.results.result import (
    Decision,
    DefenseResult,
    Diagnostic,
    Difference,
    Gate,
    Verdict,
)
from dent.evaluation.results.sanity import AT_CHANCE
from dent.evaluation.results.scoring import Scores
from dent.evaluation.results.symptoms import Symptoms, symptoms_of
from dent.evaluation.results.worst_case import (
    MIN_CLUSTERS,
    bootstrap_seed,
    by_sample,
    natural_difference,
)
from dent.evaluation.suites import VERSION, Budget, coverage_of
from dent.support.plural import agreeing, counted
from dent.support.rounding import points, points_bounds

Ruling = Literal["robust gain", "no gain", "harmful", "inconclusive"]

UNFINISHED: Final = "unfinished"
_KNOWN: Final = (
    "Attacks knew the seed of every submission, and answers under that seed are always the same."
)
FEW_BATCHES: Final = "few batches"
LARGE_STEPS: Final = "gradient over large steps"
MORE_CLASSES: Final = "more logits than classes"

RULES: Final = 6
"""Version of these rules."""
FEW: Final = 0.05
"""A verdict of no gain states the gain that the samples can show, if it is more than this."""

Ground = Literal["exact gradient certified", "surrogate gradient, unbeaten"]


@dataclass(frozen=True)
class Evidence:
    """The evidence in the records of a defense that decides its gates.

    Attributes:
        ran: Members of the suite that attacked it, except attacks that were not available for it.
        symptoms: Signs that the attacks by its gradient were too weak.
        drawn: Whether every submission was repeated under several seeds.
        large_steps: Whether its gradient predicts how the answers change over large steps; None if
            that was not checked.
        known: Whether attacks knew the seed of every submission (public randomness), and equal
            seeds gave equal answers.
        surplus: Number of logits of the defense beyond the classes of the dataset.
    """

    ran: Collection[str]
    symptoms: Symptoms
    drawn: bool
    large_steps: bool | None
    known: bool = False
    surplus: int = 0


def _needs(*names: str) -> Callable[[Evidence], str | None]:
    """Return a condition: these members of the suite must have attacked the defense."""

    def problem(evidence: Evidence) -> str | None:
        missing = [name for name in names if name not in evidence.ran]
        return f"these attacks did not run on it: {', '.join(missing)}" if missing else None

    return problem


def _by_expectation(evidence: Evidence) -> str | None:
    if evidence.known:
        return None
    if not evidence.drawn:
        return "every submission must be repeated under several seeds"
    return _needs("eot")(evidence)


def _unbeaten(evidence: Evidence) -> str | None:
    symptoms = evidence.symptoms
    for kind, ahead in (
        ("black-box attacks", symptoms.black_box),
        ("transfer attacks", symptoms.transfer),
    ):
        beaten = symptoms.beaten(ahead)
        if beaten is None:
            return f"it needs both gradient attacks and {kind}"
        if beaten:
            return (
                f"{kind} break {counted(ahead or 0, 'member')} more than all gradient "
                "attacks together"
            )
    return None


def _seen(evidence: Evidence) -> str | None:
    blind = evidence.symptoms.blind
    if not evidence.symptoms.standing:
        return None
    if blind is None:
        return "the records do not say for which members the attacks had a gradient"
    if blind:
        return (
            f"no attack had a gradient for {counted(blind, 'member')} that "
            f"{agreeing(blind, 'are')} still correct"
        )
    return None


def _sighted(evidence: Evidence) -> str | None:
    return _seen(evidence) or _unbeaten(evidence)


def _never(_: Evidence) -> str | None:
    return "the suite cannot rule it out"


SYMPTOMS: Final[Mapping[str, Callable[[Evidence], str | None]]] = {
    "randomized": _by_expectation,
    "carries state": _never,
    "not logits": _sighted,
    "zero gradient": _sighted,
    SIGHTED: _sighted,
    "batch dependent": _needs("gmsa-avg", "gmsa-min"),
    "undeclared dependence": _never,
    "black-box beats white-box": _unbeaten,
    "transfer beats white-box": _unbeaten,
    "more iterations still help": _never,
    HUGE_EPS: _never,
    "served differs from claimed": lambda evidence: None if evidence.drawn else _never(evidence),
    "served differs with gradients": _never,
    "cannot be copied": _never,
}
"""For each diagnostic, the condition that closes its gate: it returns the problem that remains, or
None. The diagnostic "non-finite" opens no gate, because such a prediction counts as wrong."""

_SEEN: Final = (
    "Some attack had a gradient for every member that is still correct, and no attack without it "
    "does better."
)
_AHEAD: Final = (
    "All attacks by the defense's own gradient together break as many members as the others, but "
    "for 1% of the samples at most."
)
_GONE: Final[Mapping[str, str]] = {
    "randomized": "Every submission was repeated under several seeds, and eot attacked it.",
    "not logits": _SEEN,
    "zero gradient": _SEEN,
    SIGHTED: _SEEN,
    "batch dependent": "The attacks gmsa-avg and gmsa-min attacked it.",
    "black-box beats white-box": _AHEAD,
    "transfer beats white-box": _AHEAD,
    "served differs from claimed": "It is randomized, and was scored over several draws.",
}
"""For each diagnostic, the sentence that says why its gate is closed."""

_LOST: Final = (
    "The gradient is exact, but over steps of a quarter or half of eps it does not predict how the "
    "answers change. Attacks that follow it may be lost."
)
_NOT_CHECKED: Final = (
    "An older version did not check the gradient over steps of a quarter or half of eps: run it "
    "again."
)

_SCORING: Final = ("randomized", "served differs with gradients")
"""Diagnostics that suggest that the numbers of a defense are too low."""
_BOTH_WAYS: Final = (*_SCORING, FEW_BATCHES)
"""Gates of a defense that prevent the verdict *harmful* as well."""


def gates_of(diagnostics: Sequence[Diagnostic], evidence: Evidence) -> tuple[Gate, ...]:
    """Return the gates of one defense, open or closed.

    Args:
        diagnostics: The diagnostics of one defense.
        evidence: The evidence in its records about the gates.
    """
    return tuple(_gates(diagnostics, evidence))


def ground_of(diagnostics: Sequence[Diagnostic], evidence: Evidence) -> Ground | None:
    """Return the ground for a gain: an exact gradient, or one that no other attack has beaten.

    In both cases, the gradient must predict the answers over large steps, and attacks must have had
    a gradient for every member that is still correct. Otherwise there is no ground.
    """
    if not evidence.large_steps or _seen(evidence) is not None:
        return None
    states = {diagnostic.name: diagnostic.state for diagnostic in diagnostics}
    if states.get(CERTIFICATE) == "passed":
        return "exact gradient certified"
    unbeaten = _unbeaten(evidence) is None and states.get(HUGE_EPS) == "passed"
    return "surrogate gradient, unbeaten" if unbeaten else None


def conclude(
    budget: Budget,
    difference: Difference,
    natural: Difference,
    gates: tuple[Gate, ...],
    static_gates: tuple[Gate, ...],
    *,
    ground: Ground | None = "exact gradient certified",
    version: int = VERSION,
    decided: Decision | None = None,
    spared: Difference | None = None,
    unchallenged: Difference | None = None,
    guessing: Sequence[str] = (),
) -> Verdict:
    """Return the verdict on a defense.

    Args:
        budget: The budget of the suite.
        difference: The worst case of the defense minus the static model's.
        natural: The clean accuracy of the defense minus the static model's.
        gates: The gates of the defense.
        static_gates: The gates of the static model.
        ground: The ground for a gain. Without one, there can be no gain.
        version: The version of the suite.
        decided: Where the attacks stopped early; None if they ran to the end.
        spared: The difference without the challenges to the static model; None if there are none.
            A gain must also hold without them, because nobody may have attacked the defense as
            hard.
        unchallenged: The difference without the challenges to the defense alone; None if there are
            none. A difference below 0 must also hold without them, because nobody may have attacked
            the static model as hard.
        guessing: The names of the models (the static model, the defense) whose clean accuracy is at
            chance.
    """
    ruling, why = _ruling(difference, natural, gates, static_gates, ground, spared, unchallenged)
    if guessing and (STATIC in guessing or ruling in ("robust gain", "no gain")):
        ruling, why = "inconclusive", f"{AT_CHANCE} ({', '.join(guessing)})"
    if decided is not None:
        why = f"{_at_most(decided, difference)}; {why}"
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
            f"{ruling[0].upper()}{ruling[1:]} under the dynamic suite ({budget}): {why}. "
            f"Version {version} of the suite, version {RULES} of the rules."
        ),
    )


def _ruling(
    difference: Difference,
    natural: Difference,
    gates: tuple[Gate, ...],
    static_gates: tuple[Gate, ...],
    ground: Ground | None,
    spared: Difference | None,
    unchallenged: Difference | None,
) -> tuple[Ruling, str]:
    side, natural_side = _side(difference), _side(natural)
    opened = [gate.name for gate in gates if gate.open]
    if side == "unknown" or UNFINISHED in opened:
        why = "no batch has finished the suite"
        return "inconclusive", why if side == "unknown" else "the suite has not finished"
    if side == "above":
        return _above(opened, ground, natural, spared)
    by_challenge = unchallenged is not None and _side(unchallenged) != "below"
    if side == "below" and not by_challenge:
        return _below(natural_side, opened, static_gates)
    if natural_side == "below":
        return _unnatural(opened)
    if side == "below":
        return "no gain", "only challenges to the defense put the difference below 0"
    return _level(difference)


def _unnatural(opened: Sequence[str]) -> tuple[Ruling, str]:
    if FEW_BATCHES in opened:
        return "inconclusive", f"its clean accuracy is lower, but gates are open: {FEW_BATCHES}"
    return "harmful", "natural accuracy is lower, and no robust gain was found"


def _level(difference: Difference) -> tuple[Ruling, str]:
    samples = counted(difference.total, "sample")
    shown = detectable_gain(difference.total)
    if shown is None:
        return "inconclusive", f"{samples} cannot show any gain"
    why = "the interval of the difference contains 0"
    if difference.value == 0 and not difference.only_defended:
        why = "the defense and the static model are correct on the same samples"
    if shown > FEW:
        why += f", and a gain below {points(shown)} points can go unseen with {samples}"
    return "no gain", why


def _at_most(decided: Decision, difference: Difference) -> str:
    most = f"at most {points(decided.at_most)}"
    if difference.interval is not None and difference.value == decided.at_most:
        most += f" {points_bounds(difference.interval)}"
    if not decided.after:
        return f"{most} after transfer from the static model"
    return f"{most} after {decided.after} of {counted(decided.of, 'attack')}"


def _above(
    opened: Sequence[str], ground: Ground | None, natural: Difference, spared: Difference | None
) -> tuple[Ruling, str]:
    if spared is not None and _side(spared) != "above":
        return "no gain", "only challenges to the static model put the difference above 0"
    if opened:
        return "inconclusive", f"its worst case is higher, but gates are open: {', '.join(opened)}"
    if ground is None:
        return "inconclusive", "its worst case is higher, but no gradient is certified"
    why = f"the whole interval of the difference lies above 0 ({ground})"
    if _side(natural) == "below" and natural.interval is not None:
        lost = f"{points(natural.value or 0.0)} {points_bounds(natural.interval)}"
        why += f", but clean accuracy is lower: {lost} points"
    return "robust gain", why


def _below(
    natural_side: str, opened: Sequence[str], static_gates: tuple[Gate, ...]
) -> tuple[Ruling, str]:
    doubts = [f"{gate.name} (static model)" for gate in static_gates if gate.open]
    doubts += [name for name in opened if name in _BOTH_WAYS]
    if doubts:
        return "inconclusive", f"its worst case is lower, but gates are open: {', '.join(doubts)}"
    if natural_side == "below":
        return "harmful", "robust and natural accuracy are lower than the static model's"
    return "harmful", "robust accuracy is lower than the static model's"


def with_verdicts(
    results: Mapping[str, DefenseResult],
    scores: Mapping[str, Scores],
    spec: EvaluationSpec,
    *,
    complete: bool,
    spared: Mapping[str, Difference] = MappingProxyType({}),
    unchallenged: Mapping[str, Difference] = MappingProxyType({}),
) -> dict[str, DefenseResult]:
    """Add a verdict to each defense, if the run has the whole suite and a static model.

    Args:
        results: The results by name, without verdicts.
        scores: The scores by name.
        spec: The specification.
        complete: Whether every planned unit is recorded.
        spared: By name, the difference without the challenges to the static model; empty if there
            are no such challenges.
        unchallenged: By name, the difference without the challenges to the defense alone, for
            defenses that have some.
    """
    coverage = coverage_of(spec)
    if coverage is None or STATIC not in results:
        return dict(results)
    evidence = {
        name: evidence_of(result, scores[name], spec, coverage.ran_as)
        for name, result in results.items()
    }
    unfinished = () if complete else (_unfinished(),)
    static_gates = gates_of(results[STATIC].diagnostics, evidence[STATIC]) + unfinished
    # Only a claim of a gain needs these gates. Nets without a defense curve over such steps, too.
    needless = (LARGE_STEPS, MORE_CLASSES)
    static_gates = tuple(gate for gate in static_gates if gate.name not in needless)
    judged = dict(results)
    for name, result in results.items():
        if result.difference is None:
            continue
        own_gates = gates_of(result.diagnostics, evidence[name])
        own_gates += _few_batches(result, len(scores[name].whole)) + unfinished
        doubts = static_gates
        if result.decided is not None:  # checks that only a claim of a gain needs did not run
            own_gates = tuple(gate for gate in own_gates if gate.name in _BOTH_WAYS)
            doubts = static_gates if result.decided.below else ()
        natural = natural_difference(
            scores[STATIC], scores[name], result.dependence, bootstrap_seed(spec)
        )
        verdict = conclude(
            coverage.budget,
            result.difference,
            natural,
            own_gates,
            doubts,
            ground=ground_of(result.diagnostics, evidence[name]),
            version=coverage.version,
            decided=result.decided,
            spared=spared.get(name),
            unchallenged=unchallenged.get(name),
            guessing=[each for each in (STATIC, name) if _guesses(results[each])],
        )
        judged[name] = result.model_copy(update={"verdict": verdict})
    return judged


def evidence_of(
    result: DefenseResult, scores: Scores, spec: EvaluationSpec, ran_as: Mapping[str, str]
) -> Evidence:
    """Return the evidence in the records of a defense that decides its gates.

    Args:
        result: The result of the defense, without a verdict.
        scores: The scores of its records.
        spec: The specification.
        ran_as: For each member of the suite, the attack of the run that covers it.
    """
    attacks_run = {summary.attack for summary in result.attacks if summary.ran}
    if result.difference is None:  # the static model: some attacks are the same on it
        attacks_run |= {name for name, other in spec.same_on_static.items() if other in attacks_run}
    units = [record for records in scores.records.values() for record in records]
    return Evidence(
        ran={member for member, attack in ran_as.items() if attack in attacks_run},
        symptoms=symptoms_of(
            scores,
            spec,
            by_sample=by_sample(result.dependence),
            on_static=result.difference is None,
        ),
        drawn=bool(units) and all(record.draws for record in units),
        known=spec.settings.randomness == "public" and not any(record.draws for record in units),
        surplus=max(0, (answered_classes(scores.probe) or 0) - len(spec.dataset.classes)),
        large_steps=over_large_steps(scores.probe),
    )


def _guesses(result: DefenseResult) -> bool:
    return any(diagnostic.name == AT_CHANCE for diagnostic in result.raised)


def _side(difference: Difference) -> Literal["above", "below", "level", "unknown"]:
    if difference.interval is None:
        return "unknown"
    low, high = difference.interval
    return "above" if low > 0 else "below" if high < 0 else "level"


def _gates(diagnostics: Sequence[Diagnostic], evidence: Evidence) -> Iterator[Gate]:
    if evidence.surplus:
        sentence = (
            f"It answers {counted(evidence.surplus, 'logit')} more than the dataset has classes. "
            "Attacks may follow classes that can never win: cut the others off."
        )
        yield Gate(name=MORE_CLASSES, open=True, sentence=sentence)
    for diagnostic in diagnostics:
        if diagnostic.name == CERTIFICATE:
            yield from _certificate(diagnostic, diagnostics, evidence)
        elif diagnostic.name == HUGE_EPS and diagnostic.state == "not-run":
            yield Gate(name=HUGE_EPS, open=True, sentence=diagnostic.sentence)
        elif diagnostic.name == SIGHTED and diagnostic.state == "not-run":
            if _seen(evidence) is not None:
                yield Gate(name=SIGHTED, open=True, sentence=diagnostic.sentence)
        elif diagnostic.raised and diagnostic.name in SYMPTOMS:
            problem = SYMPTOMS[diagnostic.name](evidence)
            yield Gate(
                name=diagnostic.name,
                open=problem is not None,
                sentence=_closed(diagnostic.name, evidence)
                if problem is None
                else f"{problem[0].upper()}{problem[1:]}.",
            )


def _closed(name: str, evidence: Evidence) -> str:
    return _KNOWN if evidence.known and name == "randomized" else _GONE[name]


def _certificate(
    diagnostic: Diagnostic, diagnostics: Sequence[Diagnostic], evidence: Evidence
) -> Iterator[Gate]:
    if diagnostic.state == "passed":
        if not evidence.large_steps:
            sentence = _NOT_CHECKED if evidence.large_steps is None else _LOST
            yield Gate(name=LARGE_STEPS, open=True, sentence=sentence)
        return
    ground = ground_of(diagnostics, evidence)
    sentence = diagnostic.sentence
    if ground is not None:
        sentence += (
            " But over large steps the gradient predicts the answers, no other attack breaks more, "
            "and a huge eps breaks all."
        )
    yield Gate(name=CERTIFICATE, open=ground is None, sentence=sentence)


def _unfinished() -> Gate:
    return Gate(name=UNFINISHED, open=True, sentence="The run is not finished.")


def _few_batches(result: DefenseResult, batches: int) -> tuple[Gate, ...]:
    """Return an open gate if there are too few batches for an interval of dependent members."""
    if by_sample(result.dependence) or batches >= MIN_CLUSTERS:
        return ()
    sentence = (
        f"Members of a batch share an adaptation. {counted(batches, 'batch')} "
        f"{agreeing(batches, 'are')} too few for an interval that accounts for this: "
        f"{MIN_CLUSTERS} are needed."
    )
    return (Gate(name=FEW_BATCHES, open=True, sentence=sentence),)
