"""Signs in the records that a number may be wrong.

A diagnostic that was not measured says "not run". It never counts as passed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from dent.evaluation.attack_kinds import AttackKind
from dent.evaluation.records.probe_answers import (
    DISTANCE,
    changed,
    depends_on_batch,
    other_batches,
    randomized,
    stateful,
)
from dent.evaluation.records.schema import (
    Comparison,
    ProbeRecord,
    Session,
)
from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.evaluation.results.certificate import CERTIFICATE, agreement_of, certificate_of
from dent.evaluation.results.gradient_comparison import GradientComparison, square_gains
from dent.evaluation.results.result import AttackSummary, Dependence, Diagnostic
from dent.evaluation.submission.submitter import EXPERIENCED, NATURAL_AFTER, WITH_GRADIENTS

SIGHTED: Final = "no gradient where members stand"
ZERO_GRADIENT: Final = 0.05
MISMATCH: Final = 0.01
HUGE_EPS: Final = "huge eps does not break all"
_ASK: Final = "Ask for it with --diagnostics full."
_SOURCE: Final = "The static model is the source of the transfer."
_NOT_PROBED: Final = "The defense has not been probed yet."


@dataclass(frozen=True)
class _DefenseRecords:
    """The records of one defense. The fields are the arguments of `of_defense`."""

    name: str
    probe: ProbeRecord | None
    dependence: Dependence
    attacks: Sequence[AttackSummary]
    non_finite: int
    has_static: bool
    kinds: Mapping[str, AttackKind] = field(default_factory=dict)
    comparison: GradientComparison | None = None
    apart: Mapping[str, float] = field(default_factory=dict)

    @property
    def own_attacks(self) -> list[AttackSummary]:
        """Attacks that follow the defense's own gradients, or that only query it."""
        return [
            attack
            for attack in self.attacks
            if self.kinds.get(attack.attack or "") in (None, "white-box", "black-box")
            or attack.black_box
        ]


@dataclass(frozen=True)
class _Judgement:
    """One diagnostic of the table `_JUDGEMENTS`: how to measure it, and what to say.

    Attributes:
        name: Name of the diagnostic.
        measure: Returns the value to compare with the threshold, or a sentence that says why there
            is no value.
        raised: The sentence if the value is above the threshold. `{probe}` in it stands for the
            probe record, and `{value}` for the value.
        passed: The sentence if the value is not above the threshold.
        threshold: The largest value that passes.
    """

    name: str
    measure: Callable[[_DefenseRecords], float | str]
    raised: str
    passed: str
    threshold: float = 0

    def of(self, defense: _DefenseRecords) -> Diagnostic:
        """Return the diagnostic of one defense."""
        value = self.measure(defense)
        if isinstance(value, str):
            return Diagnostic.not_run(self.name, value)
        raised = self.raised.format(probe=defense.probe, value=value)
        return Diagnostic.judge(self.name, value, self.threshold, raised, self.passed)


def of_defense(
    name: str,
    probe: ProbeRecord | None,
    dependence: Dependence,
    attacks: Sequence[AttackSummary],
    non_finite: int,
    *,
    has_static: bool,
    has_exact_attack: bool,
    kinds: Mapping[str, AttackKind] | None = None,
    comparison: GradientComparison | None = None,
    apart: Mapping[str, float] | None = None,
) -> tuple[Diagnostic, ...]:
    """Return all diagnostics of one defense, raised or not, always in the same order.

    They include the certificate if an attack of the run follows the exact gradient.

    Args:
        name: Name of the defense.
        probe: Its probe record, if there is one.
        dependence: Whether its predictions depend on the rest of their batch.
        attacks: The summaries of all attacks on it.
        non_finite: Number of natural members without a prediction.
        has_static: Whether the run has a static model.
        has_exact_attack: Whether an attack of the run follows the exact gradient.
        kinds: The kind of each attack. An attack that is not listed counts as white-box.
        comparison: The attacks by its gradient, compared with the others.
        apart: For each view (another way to submit the same batch), the largest distance between
            its answers and the submission.
    """
    defense = _DefenseRecords(
        name=name,
        probe=probe,
        dependence=dependence,
        attacks=attacks,
        non_finite=non_finite,
        has_static=has_static,
        kinds=kinds or {},
        comparison=comparison,
        apart=apart or {},
    )
    judged = tuple(judgement.of(defense) for judgement in _JUDGEMENTS)
    return (*judged, certificate_of(probe)) if has_exact_attack else judged


ANOTHER_STATIC: Final = "static is not the model"
ANOTHER_STATIC_SENTENCE: Final = (
    "The static model has other weights than the model under evaluation, so every difference "
    "compares with another model."
)


def static_is_another(spec: EvaluationSpec) -> bool:
    """Return whether the static model has other weights than the model under evaluation."""
    return any(
        defense.name == STATIC and defense.weights != spec.model.weights
        for defense in spec.defenses
    )


def of_run(
    spec: EvaluationSpec, *, uneven: bool, sessions: Sequence[Session]
) -> tuple[Diagnostic, ...]:
    """Return the diagnostics of a whole run, which do not depend on the defense.

    *static is not the model* is listed only if it is raised.
    """
    another = (
        (Diagnostic.judge(ANOTHER_STATIC, 1.0, 0, ANOTHER_STATIC_SENTENCE, ""),)
        if static_is_another(spec)
        else ()
    )
    kinds = {(tuple(sorted(s.versions.items())), s.platform, s.device, s.threads) for s in sessions}
    return (
        Diagnostic.judge(
            "uneven batches",
            float(uneven),
            0,
            "The last batch is smaller than the others, and a dynamic defense may predict "
            "differently in it.",
            "All batches have the same size.",
        ),
        Diagnostic.judge(
            "mixed provenance",
            float(len(kinds) - 1),
            0,
            "The run was resumed with other software, on another device, or with other threads.",
            "The whole run used the same software and device.",
        )
        if kinds
        else Diagnostic.not_run("mixed provenance", "The run has no session on record."),
        *another,
    )


def _of_probe(
    measure: Callable[[ProbeRecord], float | str],
) -> Callable[[_DefenseRecords], float | str]:
    """Turn a measure of the probe record into a measure of a defense."""
    return lambda defense: _NOT_PROBED if defense.probe is None else measure(defense.probe)


def _randomized(probe: ProbeRecord) -> float:
    if randomized(probe):
        return _distance(probe.repeated)
    # Some defenses draw random numbers only for images that an attack moved.
    return 0.0 if agreement_of(probe) is None or stateful(probe) else 1.0


def _state(defense: _DefenseRecords) -> float | str:
    if defense.probe is None:
        return _NOT_PROBED
    remembered = (
        defense.apart[name] for name in (EXPERIENCED, NATURAL_AFTER) if name in defense.apart
    )
    return max(
        _distance(defense.probe.again) if stateful(defense.probe) else 0.0,
        1.0 if defense.probe.shares else 0.0,
        defense.probe.again_gradient or 0,
        *remembered,
    )


def _zero_gradient(probe: ProbeRecord) -> float | str:
    if probe.zero_gradients is None:
        return 1.0
    if not probe.gradient_rows:
        return "No member of the probe was classified correctly."
    return probe.zero_gradients / probe.gradient_rows


def _depends(probe: ProbeRecord) -> float | str:
    if depends_on_batch(probe) is None:
        return _UNMEASURABLE
    furthest = max(map(_distance, other_batches(probe)))
    return furthest if any(map(changed, other_batches(probe))) else 0.0


def _undeclared(defense: _DefenseRecords) -> float | str:
    if defense.probe is None:
        return _NOT_PROBED
    measured = depends_on_batch(defense.probe)
    return (
        _UNMEASURABLE if measured is None else float(measured and not defense.dependence.declared)
    )


def _attacks_missing(defense: _DefenseRecords) -> bool:
    """Return whether an attack on the defense itself has not run, or not yet."""
    return any(attack.kind == "attack" and not attack.batches for attack in defense.own_attacks)


def _black_box(defense: _DefenseRecords) -> float | str:
    if _attacks_missing(defense):
        return _TOO_FEW
    ran = [attack for attack in defense.own_attacks if attack.ran]
    white = [attack.served for attack in ran if not attack.black_box]
    black = [attack.served for attack in ran if attack.black_box]
    within = [gain for attack in defense.attacks if attack.ran for gain in _square_gains(attack)]
    comparable = {count.total for count in (*white, *black)}
    if black and white and len(comparable) == 1:
        within.append(min(c.correct for c in white) - min(c.correct for c in black))
    return (
        float(max(within)) if within else "The run needs both a black-box and a white-box attack."
    )


def _square_gains(attack: AttackSummary) -> list[int]:
    """Return how many members Square fooled that the attacks before it in the same set had not."""
    return square_gains({part: left.total - left.correct for part, left in attack.after.items()})


def _transfer(defense: _DefenseRecords) -> float | str:
    white = [attack.served for attack in defense.own_attacks if attack.ran and not attack.black_box]
    transferred = [
        attack.served for attack in defense.attacks if attack.kind == "transfer" and attack.batches
    ]
    if defense.name == STATIC:
        return _SOURCE
    if white and transferred:
        if _attacks_missing(defense):
            return _TOO_FEW
        return float(min(c.correct for c in white) - min(c.correct for c in transferred))
    if transferred:
        return "No attack by the defense's own gradient ran."
    return (
        "No transfer from the static model ran."
        if defense.has_static
        else "The run has no static model to transfer from."
    )


def _more_iterations(defense: _DefenseRecords) -> float | str:
    if defense.probe is None or defense.probe.more_iterations is None:
        return _ASK
    gains = [
        (follow_up.before or 0) - follow_up.correct for follow_up in defense.probe.more_iterations
    ]
    return float(max(gains)) if gains else "No iterative gradient attack ran."


def _huge_eps(defense: _DefenseRecords) -> float | str:
    if defense.probe is not None and defense.probe.zero_gradients is None:
        return "The defense has no gradient to follow."
    if defense.probe is None or defense.probe.huge_eps is None:
        return _ASK
    return defense.probe.huge_eps.correct / defense.probe.huge_eps.total


def _mismatch(defense: _DefenseRecords) -> float | str:
    attacks = [
        attack for attack in defense.attacks if attack.claimed is not None and attack.batches
    ]
    shares = [
        (attack.claimed_but_served + attack.served_wrong_unclaimed) / attack.served.total
        for attack in attacks
    ]
    return max(shares) if shares else "No attack ran on the defense itself."


def _without_gradient(defense: _DefenseRecords) -> float | str:
    if defense.comparison is None or defense.comparison.without_gradient is None:
        return "No gradient attack recorded for which members it had a gradient."
    return float(defense.comparison.without_gradient)


def _not_copied(defense: _DefenseRecords) -> float | str:
    if defense.probe is None or defense.probe.calls is None:
        return "The defense has not been copied."
    return float(defense.probe.uncopied is not None)


def _non_finite(defense: _DefenseRecords) -> float:
    attacked = (attack.non_finite + attack.non_finite_in_attack for attack in defense.attacks)
    return float(defense.non_finite + sum(attacked))


_TOO_FEW: Final = "The run stopped before every attack on the defense itself had run."
_UNMEASURABLE: Final = "It cannot be measured on a batch of one or on a randomized defense."
_JUDGEMENTS: Final = (
    _Judgement(
        "randomized",
        _of_probe(_randomized),
        "Another seed changes the predictions. Attacks must average over seeds, and one "
        "submission is not enough.",
        "The seed does not change the predictions.",
        DISTANCE,
    ),
    _Judgement(
        "carries state",
        _state,
        "Earlier queries change the predictions for the same batch and seed, or a memory that "
        "copies of the defense share. The results depend on the order of the queries.",
        "Earlier queries do not change the predictions.",
        DISTANCE,
    ),
    _Judgement(
        "not logits",
        _of_probe(lambda probe: probe.probabilities / probe.rows),
        "The outputs are probabilities. Losses on logits have a vanishing gradient.",
        "The outputs are not probabilities.",
        0.5,
    ),
    _Judgement(
        "zero gradient",
        _of_probe(_zero_gradient),
        "Correctly classified members have no input gradient. White-box attacks cannot work.",
        "The input gradients are not zero.",
        ZERO_GRADIENT,
    ),
    _Judgement(
        "batch dependent",
        _of_probe(_depends),
        "Predictions depend on the other members of the batch. Attacks may use those members, and "
        "the worst case is per batch.",
        "No prediction depends on the other members of the batch.",
        DISTANCE,
    ),
    _Judgement(
        "undeclared dependence",
        _undeclared,
        "Predictions depend on the batch, but the defense declares that they do not. Attacks that "
        "relied on this are too weak.",
        "The measured batch dependence agrees with the declared one.",
    ),
    _Judgement(
        "black-box beats white-box",
        _black_box,
        "A black-box attack broke members that gradient attacks did not. Either the gradients "
        "mislead, or the gradient attacks are too weak.",
        "Gradient attacks broke at least as many members as black-box attacks.",
    ),
    _Judgement(
        "transfer beats white-box",
        _transfer,
        "Transfer from the static model broke {value:.0f} more than the attacks on the defense "
        "itself. Either its gradients mislead, or these attacks are too weak: the accuracy under "
        "them is too high.",
        "The attacks on the defense broke at least as many members as the transfer attacks.",
    ),
    _Judgement(
        "more iterations still help",
        _more_iterations,
        "Twice the iterations broke more members. The attack had not converged.",
        "Twice the iterations broke no more members.",
    ),
    _Judgement(
        HUGE_EPS,
        _huge_eps,
        "With an eps at which any image can become any other, some predictions are still correct. "
        "The gradients mislead.",
        "With an eps at which any image can become any other, no prediction is correct.",
    ),
    _Judgement(
        "served differs from claimed",
        _mismatch,
        "The predictions that attacks saw differ from those of the submission. Only the submission "
        "counts.",
        "The attacks saw the same predictions as the submission.",
        MISMATCH,
    ),
    _Judgement(
        "served differs with gradients",
        lambda defense: defense.apart.get(WITH_GRADIENTS, 0.0),
        "The predictions change when gradients are on, as in attacks. The attacks see another "
        "defense than the submission.",
        "No prediction changed when gradients were on, as in attacks.",
        DISTANCE,
    ),
    _Judgement(
        SIGHTED,
        _without_gradient,
        "For some members that are still correct, no attack had a gradient.",
        "For every member that is still correct, an attack had a gradient.",
    ),
    _Judgement(
        "cannot be copied",
        _not_copied,
        "{probe.uncopied}. So no prediction comes from a fresh copy of the defense.",
        "Fresh copies of the defense gave every prediction that counts.",
    ),
    _Judgement(
        "non-finite",
        _non_finite,
        "Some logits were not finite. These predictions count as wrong.",
        "All logits were finite.",
    ),
)
"""The diagnostics of every defense, in this order."""


def _distance(comparison: Comparison) -> float:
    """Return the distance between two answers; 1 if only one of them is finite."""
    return 1.0 if comparison.distance is None else comparison.distance


def stopped(diagnostics: Sequence[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Return the diagnostics of a stopped run, with this reason for the ones that did not run."""
    return tuple(
        each.model_copy(update={"sentence": _STOPPED})
        if each.state == "not-run" and each.name in _LATE and each.sentence != _SOURCE
        else each
        for each in diagnostics
    )


_STOPPED: Final = "The run stopped before it, because a gain can no longer be shown (--to-the-end)."
_LATE: Final = (
    "black-box beats white-box",
    "transfer beats white-box",
    HUGE_EPS,
    SIGHTED,
    CERTIFICATE,
)
"""Diagnostics that a run of the whole suite measures last, or that need its last attacks."""
