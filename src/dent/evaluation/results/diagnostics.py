"""Signs in the records that a number may be wrong.

A diagnostic that was not measured says "not run". It never counts as passed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from dent.evaluation.probe.gradient_check import ALIKE
from dent.evaluation.records.readings import (
    DISTANCE,
    depends,
    moved,
    other_batches,
    randomized,
    stateful,
)
from dent.evaluation.records.schema import (
    Comparison,
    GradientCheck,
    GradientPoint,
    ProbeRecord,
    Session,
)
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.result import AttackSummary, Dependence, Diagnostic
from dent.evaluation.results.symptoms import Symptoms
from dent.evaluation.submission.submitter import EXPERIENCED, NATURAL_AFTER, WITH_GRADIENTS
from dent.evaluation.suites import Stand

CERTIFICATE: Final = "gradient certificate"
COARSE: Final = 0.6
"""Over large steps, a surrogate gradient with an error up to this is worth following. The gradient
of a wrong model has an error of about 1."""
ZERO_GRADIENT: Final = 0.05
MISMATCH: Final = 0.01
_ASK: Final = "Ask for it with diagnostics='full'."
_NOT_PROBED: Final = "The defense has not been probed yet."


@dataclass(frozen=True)
class _DefenseRecords:
    """What is on record of one defense. The fields are the arguments of `of_defense`."""

    name: str
    probe: ProbeRecord | None
    dependence: Dependence
    attacks: Sequence[AttackSummary]
    non_finite: int
    has_static: bool
    stands: Mapping[str, Stand] = field(default_factory=dict)
    symptoms: Symptoms | None = None
    apart: Mapping[str, float] = field(default_factory=dict)

    @property
    def own_attacks(self) -> list[AttackSummary]:
        """Attacks that follow the defense's own gradients, or that only query it."""
        return [
            attack
            for attack in self.attacks
            if self.stands.get(attack.attack or "") in (None, "white-box")
        ]


@dataclass(frozen=True)
class _Judgement:
    """A row of the table of judgements.

    Attributes:
        name: Name of the diagnostic.
        measure: Returns the value to compare with the threshold, or a sentence that says why there
            is no value.
        raised: The sentence if the value is above the threshold. `{probe}` is the probe's record.
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
            return _not_run(self.name, value)
        raised = self.raised.format(probe=defense.probe)
        return _judge(self.name, value, self.threshold, raised, self.passed)


def of_defense(
    name: str,
    probe: ProbeRecord | None,
    dependence: Dependence,
    attacks: Sequence[AttackSummary],
    non_finite: int,
    *,
    has_static: bool,
    looks_through: bool,
    stands: Mapping[str, Stand] | None = None,
    symptoms: Symptoms | None = None,
    apart: Mapping[str, float] | None = None,
) -> tuple[Diagnostic, ...]:
    """Return all diagnostics of one defense, raised or not, always in the same order.

    They include the certificate if an attack of the run follows the exact gradient.

    Args:
        name: Name of the defense.
        probe: Its probe record, if there is one.
        dependence: Whether its predictions depend on the rest of their batch.
        attacks: The summaries of all attacks on it.
        non_finite: Natural members without a prediction.
        has_static: Whether the run has a static reference.
        looks_through: Whether an attack of the run follows the exact gradient.
        stands: By attack, whose gradients it follows. An attack that is not named here follows
            those of the defense.
        symptoms: The symptoms in its records.
        apart: By view, the largest distance of any answer from the one that was served.
    """
    defense = _DefenseRecords(
        name=name,
        probe=probe,
        dependence=dependence,
        attacks=attacks,
        non_finite=non_finite,
        has_static=has_static,
        stands=stands or {},
        symptoms=symptoms,
        apart=apart or {},
    )
    judged = tuple(judgement.of(defense) for judgement in _JUDGEMENTS)
    return (*judged, certificate_of(probe)) if looks_through else judged


def of_run(*, uneven: bool, sessions: Sequence[Session]) -> tuple[Diagnostic, ...]:
    """Return the diagnostics of a whole run, which do not depend on the defense."""
    kinds = {(tuple(sorted(s.versions.items())), s.platform, s.device, s.threads) for s in sessions}
    return (
        _judge(
            "uneven batches",
            float(uneven),
            0,
            "The last batch is smaller than the others; a dynamic defense may answer it "
            "differently.",
            "All batches have the same size.",
        ),
        _judge(
            "mixed provenance",
            float(len(kinds) - 1),
            0,
            "The run was resumed with other software, on another device, or with other threads.",
            "One software on one device did the whole run.",
        )
        if kinds
        else _not_run("mixed provenance", "The run has no session on record."),
    )


def _of_probe(
    measure: Callable[[ProbeRecord], float | str],
) -> Callable[[_DefenseRecords], float | str]:
    """Turn a measure of the probe record into a measure of a defense."""
    return lambda defense: _NOT_PROBED if defense.probe is None else measure(defense.probe)


def _randomized(probe: ProbeRecord) -> float:
    return _distance(probe.repeated) if randomized(probe) else 0.0


def _state(defense: _DefenseRecords) -> float | str:
    if defense.probe is None:
        return _NOT_PROBED
    remembered = (
        defense.apart[name] for name in (EXPERIENCED, NATURAL_AFTER) if name in defense.apart
    )
    return max(
        _distance(defense.probe.again) if stateful(defense.probe) else 0.0,
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
    if depends(probe) is None:
        return _UNMEASURABLE
    furthest = max(map(_distance, other_batches(probe)))
    return furthest if any(map(moved, other_batches(probe))) else 0.0


def _undeclared(defense: _DefenseRecords) -> float | str:
    if defense.probe is None:
        return _NOT_PROBED
    measured = depends(defense.probe)
    return (
        _UNMEASURABLE if measured is None else float(measured and not defense.dependence.declared)
    )


def _black_box(defense: _DefenseRecords) -> float | str:
    ran = [attack for attack in defense.own_attacks if attack.ran]
    white = [attack.served for attack in ran if not attack.black_box]
    black = [attack.served for attack in ran if attack.black_box]
    within = [gain for attack in ran for gain in _square_gains(attack)]
    comparable = {count.total for count in (*white, *black)}
    if black and white and len(comparable) == 1:
        within.append(min(c.correct for c in white) - min(c.correct for c in black))
    return float(max(within)) if within else "No black-box attack ran beside a white-box one."


def _square_gains(attack: AttackSummary) -> Iterator[int]:
    """Yield how many more members Square fooled after the gradient attacks of the same set."""
    parts = list(attack.after.items())
    for (_, before), (name, after) in pairwise(parts):
        if name == "square":
            yield before.correct - after.correct


def _transfer(defense: _DefenseRecords) -> float | str:
    white = [attack.served for attack in defense.own_attacks if attack.ran and not attack.black_box]
    transferred = [
        attack.served for attack in defense.attacks if attack.kind == "transfer" and attack.batches
    ]
    if defense.name == STATIC:
        return "The static model is what is transferred from."
    if white and transferred:
        return float(min(c.correct for c in white) - min(c.correct for c in transferred))
    return (
        "Nothing was transferred from the static model."
        if defense.has_static
        else "There is no static reference to transfer from."
    )


def _more_iterations(defense: _DefenseRecords) -> float | str:
    if defense.probe is None or defense.probe.more_iterations is None:
        return _ASK
    gains = [
        (follow_up.before or 0) - follow_up.correct for follow_up in defense.probe.more_iterations
    ]
    return float(max(gains)) if gains else "No attack followed a gradient for some iterations."


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


def _blind(defense: _DefenseRecords) -> float | str:
    if defense.symptoms is None or defense.symptoms.blind is None:
        return "No attack that followed a gradient recorded for which members it had one."
    return float(defense.symptoms.blind)


def _not_copied(defense: _DefenseRecords) -> float | str:
    if defense.probe is None or defense.probe.calls is None:
        return "The defense has not been copied."
    return float(defense.probe.uncopied is not None)


def _non_finite(defense: _DefenseRecords) -> float:
    attacked = (attack.non_finite + attack.non_finite_in_attack for attack in defense.attacks)
    return float(defense.non_finite + sum(attacked))


_UNMEASURABLE: Final = (
    "It cannot be measured on a batch of one, nor where answers move by themselves."
)
_JUDGEMENTS: Final = (
    _Judgement(
        "randomized",
        _of_probe(_randomized),
        "The same batch is answered differently with another seed: attacks need expectation over "
        "randomness, and a single submission is luck.",
        "The same batch is answered the same whatever the seed.",
        DISTANCE,
    ),
    _Judgement(
        "carries state",
        _state,
        "The same batch and seed are answered differently after other queries: results depend on "
        "what was asked before.",
        "The same batch and seed are answered the same after other queries.",
        DISTANCE,
    ),
    _Judgement(
        "not logits",
        _of_probe(lambda probe: probe.probabilities / probe.rows),
        "The outputs are probabilities: losses on logits lose their gradient.",
        "The outputs are not probabilities.",
        0.5,
    ),
    _Judgement(
        "zero gradient",
        _of_probe(_zero_gradient),
        "Correctly classified members have no input gradient: white-box attacks are blind.",
        "The input gradients are not zero.",
        ZERO_GRADIENT,
    ),
    _Judgement(
        "batch dependent",
        _of_probe(_depends),
        "A prediction depends on the rest of its batch: attacks on the other members count, and "
        "the worst case is taken per batch.",
        "No prediction changed with the rest of its batch.",
        DISTANCE,
    ),
    _Judgement(
        "undeclared dependence",
        _undeclared,
        "The defense declares that predictions do not depend on their batch, and they do: attacks "
        "that trusted it are too weak.",
        "What the defense declares of its batches is not contradicted.",
    ),
    _Judgement(
        "black-box beats white-box",
        _black_box,
        "An attack by queries alone broke members that gradients did not: the gradients mislead.",
        "Gradients broke at least what queries alone did.",
    ),
    _Judgement(
        "transfer beats white-box",
        _transfer,
        "What was found against the static model breaks the defense more than attacks on the "
        "defense itself: its gradients mislead, and its own figures overestimate it.",
        "Attacks on the defense itself broke at least what those on the static model did.",
    ),
    _Judgement(
        "more iterations still help",
        _more_iterations,
        "Twice the iterations broke more members: the attack had not converged.",
        "Twice the iterations broke no more members.",
    ),
    _Judgement(
        "huge eps does not break all",
        _huge_eps,
        "With an eps at which any image can become any other, members are still right: the "
        "gradients lead nowhere.",
        "With an eps at which any image can become any other, nobody is right.",
    ),
    _Judgement(
        "served differs from claimed",
        _mismatch,
        "What attacks saw is not what is served when their batches are submitted again; only what "
        "is served counts.",
        "What attacks saw is what is served.",
        MISMATCH,
    ),
    _Judgement(
        "served differs with gradients",
        lambda defense: defense.apart.get(WITH_GRADIENTS, 0.0),
        "The defense answers otherwise when it is asked with gradients, as attacks ask: they "
        "attack something else than what is served.",
        "No answer changed when it was asked with gradients, as attacks ask.",
        DISTANCE,
    ),
    _Judgement(
        "no gradient where members stand",
        _blind,
        "Members stand for which no attack had a gradient to follow.",
        "For every member that stands, an attack had a gradient to follow.",
    ),
    _Judgement(
        "cannot be copied",
        _not_copied,
        "{probe.uncopied}. So all answers are of a defense that has answered before.",
        "What counts was answered by copies that had answered nothing before.",
    ),
    _Judgement(
        "non-finite",
        _non_finite,
        "Some answers were not finite; they count as wrong.",
        "All answers were finite.",
    ),
)
"""The diagnostics of every defense, in this order."""


def certificate_of(probe: ProbeRecord | None) -> Diagnostic:
    """Return the diagnostic of whether attacks follow the true gradient of every member."""
    if probe is None:
        return _not_run(CERTIFICATE, "The defense has not been probed for it yet.")
    check = probe.gradient
    if check is None:
        return _older_certificate(probe.gradient_check)
    if check.missing is not None or check.threshold is None:
        return _not_run(CERTIFICATE, f"There is no gradient to check: {check.missing}.")
    worst = max(_error(point) for point in check.points)
    return _judge(
        CERTIFICATE,
        worst,
        check.threshold,
        "What is served does not move as the gradient says, for every member that was looked at: "
        "attacks that follow it are not white-box.",
        f"What is served moves as the {check.rung} gradient says, for every member looked at.",
    )


def _error(point: GradientPoint) -> float:
    """Return the largest error of a member; 1 if the check was not of the attack's gradient."""
    if point.alike < ALIKE or point.same < ALIKE * point.of or None in point.errors:
        return 1.0
    return min(max(error for error in point.errors if error is not None), 1.0)


def stands_in(probe: ProbeRecord | None) -> bool:
    """Return whether an inexact gradient still predicts how the served answers change.

    It must do so over steps of a quarter or half of eps, for all members but one in fifty.
    """
    check = None if probe is None else probe.gradient
    if check is None or check.missing is not None or not check.points:
        return False
    return all(
        _error(point) < (check.threshold or 0.0)
        or (
            point.coarse is not None
            and sum(error is None or error > COARSE for error in point.coarse)
            <= len(point.coarse) // 50
        )
        for point in check.points
    )


def _older_certificate(check: GradientCheck | None) -> Diagnostic:
    if check is None:
        return _not_run(CERTIFICATE, "The defense has not been probed for it yet.")
    if check.missing is not None or check.threshold is None:
        return _not_run(CERTIFICATE, f"There is no exact gradient to check: {check.missing}.")
    return _not_run(
        CERTIFICATE,
        "An older version checked four members together, away from the attacks: run it again.",
    )


def _distance(comparison: Comparison) -> float:
    """Return the distance of two answers; 1 if only one of them is finite."""
    return 1.0 if comparison.distance is None else comparison.distance


def _judge(name: str, value: float, threshold: float, raised: str, passed: str) -> Diagnostic:
    is_raised = value > threshold
    return Diagnostic(
        name=name,
        state="raised" if is_raised else "passed",
        value=value,
        threshold=threshold,
        sentence=raised if is_raised else passed,
    )


def _not_run(name: str, why: str) -> Diagnostic:
    return Diagnostic(name=name, state="not-run", value=None, threshold=None, sentence=why)
