"""The gates of a defense: doubts about its numbers that prevent a verdict.

Every doubt about the numbers opens a gate, which stays open until its cause is gone.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dent.evaluation.records.spec import EvaluationSpec
from dent.evaluation.results.another_attack import (
    AnotherAttack,
    another_attack_gates,
    compare_another_attack,
    gain_over_another_attack,
)
from dent.evaluation.results.certificate import (
    CERTIFICATE,
    agreement_of,
    answered_classes,
    missing_checks,
    over_large_steps,
)
from dent.evaluation.results.diagnostics import (
    ANOTHER_STATIC,
    ANOTHER_STATIC_SENTENCE,
    HUGE_EPS,
    SIGHTED,
    static_is_another,
)
from dent.evaluation.results.gradient_comparison import GradientComparison, compare_gradients
from dent.evaluation.results.result import DefenseResult, Diagnostic, Gate, Ground
from dent.evaluation.results.scoring import Scores, worst_of_batch
from dent.evaluation.results.worst_case import (
    MIN_CLUSTERS,
    by_sample,
    independent_members,
)
from dent.support.plural import agreeing, counted

UNFINISHED: Final = "unfinished"
FEW_BATCHES: Final = "few batches"
LARGE_STEPS: Final = "gradient over large steps"
MORE_CLASSES: Final = "more logits than classes"
NOT_IN_FIRST: Final = "no gain in the first batch"
NO_TRANSFERS: Final = "no transfers"
UNDECLARED: Final = "undeclared dependence"
OLDER: Final = "older records"

_AGREE: Final = 0.1
"""Smallest cosine between two means of gradients of a randomized defense. With less, the noise in a
mean is at least three times as long as what the means share."""


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
        undetermined: Whether it declares to be batch-independent, but this could not be measured.
        another: How many more members of the first batch one more attack broke than the run; None
            if it did not run.
        agreement: The cosine between two means of gradients under other seeds; None if gradients
            are equal, or if that was not measured.
        missing: The checks that the records of an older version lack.
    """

    ran: Collection[str]
    symptoms: GradientComparison
    drawn: bool
    large_steps: bool | None
    known: bool = False
    surplus: int = 0
    undetermined: bool = False
    another: AnotherAttack | None = None
    agreement: float | None = None
    missing: tuple[str, ...] = ()


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
    if evidence.agreement is not None and evidence.agreement < _AGREE:
        return (
            "its noise drowns the gradient: two means over as many seeds as eot takes have a "
            f"cosine of {evidence.agreement:.2f} (at least {_AGREE} is needed)"
        )
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


def _members_without_gradient(evidence: Evidence) -> str | None:
    blind = evidence.symptoms.without_gradient
    if not evidence.symptoms.unbroken:
        return None
    if blind is None:
        return "the records do not say for which members the attacks had a gradient"
    if blind:
        return (
            f"no attack had a gradient for {counted(blind, 'member')} that "
            f"{agreeing(blind, 'are')} still correct"
        )
    return None


def _gradients_usable(evidence: Evidence) -> str | None:
    return _members_without_gradient(evidence) or _unbeaten(evidence)


def _cannot_close(_: Evidence) -> str | None:
    return "the suite cannot rule it out"


def _drawn(evidence: Evidence) -> str | None:
    return None if evidence.drawn else _cannot_close(evidence)


GATE_CONDITIONS: Final[Mapping[str, Callable[[Evidence], str | None]]] = {
    "randomized": _by_expectation,
    "carries state": _cannot_close,
    "not logits": _gradients_usable,
    "zero gradient": _gradients_usable,
    SIGHTED: _gradients_usable,
    "batch dependent": _needs("gmsa-avg", "gmsa-min"),
    UNDECLARED: _cannot_close,
    "black-box beats white-box": _unbeaten,
    "transfer beats white-box": _unbeaten,
    "more iterations still help": _cannot_close,
    HUGE_EPS: _cannot_close,
    "served differs from claimed": _drawn,
    "served differs with gradients": _cannot_close,
    "cannot be copied": _cannot_close,
}
"""For each diagnostic, the condition that closes its gate: it returns the problem that remains, or
None. The diagnostic "non-finite" opens no gate, because such a prediction counts as wrong."""

_HAD_GRADIENTS: Final = (
    "Some attack had a gradient for every member that is still correct, and no attack without it "
    "does better."
)
_AHEAD: Final = (
    "All attacks by the defense's own gradient together break as many members as the others, but "
    "for 1% of the samples at most."
)
_KNOWN: Final = (
    "Attacks knew the seed of every submission, and predictions under that seed are always the "
    "same."
)
_CLOSED_BECAUSE: Final[Mapping[str, str]] = {
    "randomized": "Every submission was repeated under several seeds, and eot attacked it.",
    "not logits": _HAD_GRADIENTS,
    "zero gradient": _HAD_GRADIENTS,
    SIGHTED: _HAD_GRADIENTS,
    "batch dependent": "The attacks gmsa-avg and gmsa-min attacked it.",
    "black-box beats white-box": _AHEAD,
    "transfer beats white-box": _AHEAD,
    "served differs from claimed": "It is randomized, and was scored over several draws.",
}
"""For each diagnostic, the sentence that says why its gate is closed."""

_LOST: Final = (
    "The gradient is exact, but over steps of a quarter or half of eps it does not predict how the "
    "logits change. Attacks that follow it may be lost."
)
_UNDETERMINED: Final = (
    "It declares that its predictions do not depend on the batch. This cannot be measured, because "
    "its answers also change for other reasons. Declare batch_dependent=True."
)
_NOT_CHECKED: Final = (
    "An older version did not check the gradient over steps of a quarter or half of eps: run it "
    "again."
)


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
    if not evidence.large_steps or _members_without_gradient(evidence) is not None:
        return None
    states = {diagnostic.name: diagnostic.state for diagnostic in diagnostics}
    if states.get(CERTIFICATE) == "passed":
        return "exact gradient certified"
    unbeaten = _unbeaten(evidence) is None and states.get(HUGE_EPS) == "passed"
    return "surrogate gradient, unbeaten" if unbeaten else None


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
        symptoms=compare_gradients(
            scores,
            spec,
            by_sample=by_sample(result.dependence),
            on_static=result.difference is None,
        ),
        drawn=bool(units) and all(record.draws for record in units),
        known=spec.settings.randomness == "public" and not any(record.draws for record in units),
        surplus=max(0, (answered_classes(scores.probe) or 0) - len(spec.dataset.classes)),
        large_steps=over_large_steps(scores.probe),
        undetermined=result.dependence.undetermined,
        another=compare_another_attack(scores, samples=by_sample(result.dependence)),
        agreement=agreement_of(scores.probe),
        missing=missing_checks(scores.probe),
    )


def _gates(diagnostics: Sequence[Diagnostic], evidence: Evidence) -> Iterator[Gate]:
    if evidence.surplus:
        sentence = (
            f"It returns {counted(evidence.surplus, 'logit')} more than the dataset has classes. "
            "Attacks may follow classes that can never win: cut the others off."
        )
        yield Gate(name=MORE_CLASSES, open=True, sentence=sentence)
    if evidence.missing:
        sentence = (
            "Its records do not say what a claim of a gain needs: "
            f"{', '.join(evidence.missing)}. An older version may have made them: evaluate it "
            "again."
        )
        yield Gate(name=OLDER, open=True, sentence=sentence)
    yield from another_attack_gates(evidence.another)
    for diagnostic in diagnostics:
        if diagnostic.name == CERTIFICATE:
            yield from _certificate(diagnostic, diagnostics, evidence)
        elif diagnostic.state == "not-run":
            yield from _of_not_run(diagnostic, evidence)
        elif diagnostic.raised and diagnostic.name in GATE_CONDITIONS:
            yield _of_raised(diagnostic, evidence)


def _of_not_run(diagnostic: Diagnostic, evidence: Evidence) -> Iterator[Gate]:
    """Yield the open gate of a diagnostic that did not run, if a verdict cannot do without it."""
    if diagnostic.name == HUGE_EPS:
        yield Gate(name=HUGE_EPS, open=True, sentence=diagnostic.sentence)
    elif diagnostic.name == UNDECLARED and evidence.undetermined:
        yield Gate(name=UNDECLARED, open=True, sentence=_UNDETERMINED)
    elif diagnostic.name == SIGHTED and _members_without_gradient(evidence) is not None:
        yield Gate(name=SIGHTED, open=True, sentence=diagnostic.sentence)


def _of_raised(diagnostic: Diagnostic, evidence: Evidence) -> Gate:
    """Return the gate of a raised diagnostic, which is open as long as a problem remains."""
    problem = GATE_CONDITIONS[diagnostic.name](evidence)
    if problem is None:
        sentence = _closed(diagnostic.name, evidence)
    else:
        sentence = f"{problem[0].upper()}{problem[1:]}."
    return Gate(name=diagnostic.name, open=problem is not None, sentence=sentence)


def _closed(name: str, evidence: Evidence) -> str:
    return _KNOWN if evidence.known and name == "randomized" else _CLOSED_BECAUSE[name]


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
            " But over large steps the gradient predicts the logits, no other attack breaks more, "
            "and a huge eps breaks all."
        )
    yield Gate(name=CERTIFICATE, open=ground is None, sentence=sentence)


def unfinished_gate() -> Gate:
    """Return the gate of a run that is not finished, which is open."""
    return Gate(name=UNFINISHED, open=True, sentence="The run is not finished.")


def run_gates(spec: EvaluationSpec) -> tuple[Gate, ...]:
    """Return the open gates of all defenses that follow from how the whole run was set up."""
    gates = []
    if not spec.settings.transfer:
        sentence = "The run submitted no adversarial images of the static model to the defense."
        gates.append(Gate(name=NO_TRANSFERS, open=True, sentence=sentence))
    if static_is_another(spec):
        gates.append(Gate(name=ANOTHER_STATIC, open=True, sentence=ANOTHER_STATIC_SENTENCE))
    return tuple(gates)


def gain_gates(
    result: DefenseResult,
    own: tuple[Evidence, Scores],
    static: tuple[Evidence, Scores],
) -> tuple[Gate, ...]:
    """Return the open gates of a gain that the checks on the first batch do not support.

    Args:
        result: The result of the defense.
        own: The evidence about the defense, and its scores.
        static: The same of the static model.
    """
    gain = None if result.difference is None else result.difference.value
    (evidence, scores), (of_static, static_scores) = own, static
    if gain is None or gain <= 0 or evidence.another is None:
        return ()
    gates = list(gain_over_another_attack(evidence.another, of_static.another, gain))
    rights, _ = worst_of_batch(scores.of_batch(0), by_sample=by_sample(result.dependence))
    static_rights, _ = worst_of_batch(static_scores.of_batch(0), by_sample=True)
    if not any(right > other for right, other in zip(rights, static_rights, strict=True)):
        sentence = (
            "The gradient is checked in the first batch, but there the defense is correct on no "
            "sample that the static model gets wrong. Use larger batches, or another order."
        )
        gates.append(Gate(name=NOT_IN_FIRST, open=True, sentence=sentence))
    return tuple(gates)


def few_batches_gates(result: DefenseResult, batches: int) -> tuple[Gate, ...]:
    """Return an open gate if there are too few batches for an interval of dependent members.

    Args:
        result: The result of the defense.
        batches: Number of its scored batches.
    """
    if independent_members(result.dependence) or batches >= MIN_CLUSTERS:
        return ()
    may = "may " if by_sample(result.dependence) else ""
    sentence = (
        f"Members of a batch {may}share an adaptation. {counted(batches, 'batch')} "
        f"{agreeing(batches, 'are')} too few for an interval that accounts for this: "
        f"{MIN_CLUSTERS} are needed."
    )
    return (Gate(name=FEW_BATCHES, open=True, sentence=sentence),)
