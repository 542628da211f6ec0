"""Signs that a number should not be taken at its word, read from the records.

What was not looked at says so: it never counts as passed.
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
"""The error over large steps up to which a gradient that stands in for another one is worth
following; a wrong model's has about 1."""
ZERO_GRADIENT: Final = 0.05
MISMATCH: Final = 0.01
_ASK: Final = "Ask for it with diagnostics='full'."
_NOT_PROBED: Final = "The defense has not been probed yet."


@dataclass(frozen=True)
class _Seen:
    """What is on record of one defense, for the table of judgements; as of `of_defense`."""

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
    def own(self) -> list[AttackSummary]:
        """Attacks that follow the defense's own gradients, or ask it alone."""
        return [
            each
            for each in self.attacks
            if self.stands.get(each.attack or "") in (None, "white-box")
        ]


@dataclass(frozen=True)
class _Judgement:
    """A row of the table of judgements.

    Attributes:
        name: Of the diagnostic.
        measure: The value that is compared with the threshold, or in words why it was not measured.
        raised: The sentence where the value is above the threshold. `{probe}` is what was asked.
        passed: The sentence where it is not.
        threshold: It.
    """

    name: str
    measure: Callable[[_Seen], float | str]
    raised: str
    passed: str
    threshold: float = 0

    def of(self, seen: _Seen) -> Diagnostic:
        """The diagnostic of one defense."""
        value = self.measure(seen)
        if isinstance(value, str):
            return _not_run(self.name, value)
        raised = self.raised.format(probe=seen.probe)
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
    """All diagnostics of one defense, raised or not, in an order that is always the same.

    The certificate is among them where an attack of the run follows the exact gradient.

    Args:
        name: Of the defense.
        probe: What it was asked at first, if that is recorded.
        dependence: Whether its answers depend on their batch.
        attacks: What each left.
        non_finite: Natural members without a prediction.
        has_static: Whether there is a static reference.
        looks_through: Whether an attack of the run follows the exact gradient.
        stands: By attack, whose gradients it follows; those of the defense where it is not told.
        symptoms: Of the records.
        apart: By view, how far any answer lay from the one that was served.
    """
    seen = _Seen(
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
    judged = tuple(each.of(seen) for each in _JUDGEMENTS)
    return (*judged, certificate_of(probe)) if looks_through else judged


def of_run(*, uneven: bool, sessions: Sequence[Session]) -> tuple[Diagnostic, ...]:
    """Diagnostics of a whole run, whatever the defense."""
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


def _of_probe(measure: Callable[[ProbeRecord], float | str]) -> Callable[[_Seen], float | str]:
    """A measure of what the defense was asked at first, where that is recorded."""
    return lambda seen: _NOT_PROBED if seen.probe is None else measure(seen.probe)


def _randomized(probe: ProbeRecord) -> float:
    return _distance(probe.repeated) if randomized(probe) else 0.0


def _state(seen: _Seen) -> float | str:
    if seen.probe is None:
        return _NOT_PROBED
    remembered = (seen.apart[name] for name in (EXPERIENCED, NATURAL_AFTER) if name in seen.apart)
    return max(
        _distance(seen.probe.again) if stateful(seen.probe) else 0.0,
        seen.probe.again_gradient or 0,
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


def _undeclared(seen: _Seen) -> float | str:
    if seen.probe is None:
        return _NOT_PROBED
    measured = depends(seen.probe)
    return _UNMEASURABLE if measured is None else float(measured and not seen.dependence.declared)


def _black_box(seen: _Seen) -> float | str:
    own = [found for found in seen.own if found.ran]
    white = [found.served for found in own if not found.black_box]
    black = [found.served for found in own if found.black_box]
    within = [gain for found in own for gain in _square_gains(found)]
    comparable = {count.total for count in (*white, *black)}
    if black and white and len(comparable) == 1:
        within.append(min(c.correct for c in white) - min(c.correct for c in black))
    return float(max(within)) if within else "No black-box attack ran beside a white-box one."


def _square_gains(found: AttackSummary) -> Iterator[int]:
    """How many more fell to Square, in a set in which it came after gradients."""
    parts = list(found.after.items())
    for (_, before), (name, after) in pairwise(parts):
        if name == "square":
            yield before.correct - after.correct


def _transfer(seen: _Seen) -> float | str:
    white = [found.served for found in seen.own if found.ran and not found.black_box]
    moved_over = [
        found.served for found in seen.attacks if found.kind == "transfer" and found.batches
    ]
    if seen.name == STATIC:
        return "The static model is what is transferred from."
    if white and moved_over:
        return float(min(c.correct for c in white) - min(c.correct for c in moved_over))
    return (
        "Nothing was transferred from the static model."
        if seen.has_static
        else "There is no static reference to transfer from."
    )


def _more_iterations(seen: _Seen) -> float | str:
    if seen.probe is None or seen.probe.more_iterations is None:
        return _ASK
    gains = [(found.before or 0) - found.correct for found in seen.probe.more_iterations]
    return float(max(gains)) if gains else "No attack followed a gradient for some iterations."


def _huge_eps(seen: _Seen) -> float | str:
    if seen.probe is not None and seen.probe.zero_gradients is None:
        return "The defense has no gradient to follow."
    if seen.probe is None or seen.probe.huge_eps is None:
        return _ASK
    return seen.probe.huge_eps.correct / seen.probe.huge_eps.total


def _mismatch(seen: _Seen) -> float | str:
    own = [found for found in seen.attacks if found.claimed is not None and found.batches]
    shares = [
        (found.claimed_but_served + found.served_wrong_unclaimed) / found.served.total
        for found in own
    ]
    return max(shares) if shares else "No attack ran on the defense itself."


def _blind(seen: _Seen) -> float | str:
    if seen.symptoms is None or seen.symptoms.blind is None:
        return "No attack that followed a gradient said of whom it had one."
    return float(seen.symptoms.blind)


def _not_copied(seen: _Seen) -> float | str:
    if seen.probe is None or seen.probe.calls is None:
        return "The defense has not been copied."
    return float(seen.probe.uncopied is not None)


def _non_finite(seen: _Seen) -> float:
    attacked = (found.non_finite + found.non_finite_in_attack for found in seen.attacks)
    return float(seen.non_finite + sum(attacked))


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
        lambda seen: seen.apart.get(WITH_GRADIENTS, 0.0),
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
"""What is judged of every defense, in this order."""


def certificate_of(probe: ProbeRecord | None) -> Diagnostic:
    """What moving images says of the gradient that attacks follow, member by member."""
    if probe is None:
        return _not_run(CERTIFICATE, "The defense has not been probed for it yet.")
    found = probe.gradient
    if found is None:
        return _older_certificate(probe.gradient_check)
    if found.missing is not None or found.threshold is None:
        return _not_run(CERTIFICATE, f"There is no gradient to check: {found.missing}.")
    worst = max(_error(point) for point in found.points)
    return _judge(
        CERTIFICATE,
        worst,
        found.threshold,
        "What is served does not move as the gradient says, for every member that was looked at: "
        "attacks that follow it are not white-box.",
        f"What is served moves as the {found.rung} gradient says, for every member looked at.",
    )


def _error(point: GradientPoint) -> float:
    """The largest error of a member; 1 where the attack's gradient is not the one checked."""
    if point.alike < ALIKE or point.same < ALIKE * point.of or None in point.errors:
        return 1.0
    return min(max(each for each in point.errors if each is not None), 1.0)


def stands_in(probe: ProbeRecord | None) -> bool:
    """Whether a gradient that is not exact still says where what is served moves.

    Over steps of a quarter or half of eps, for all members but one in fifty.
    """
    found = None if probe is None else probe.gradient
    if found is None or found.missing is not None or not found.points:
        return False
    return all(
        _error(point) < (found.threshold or 0.0)
        or (
            point.coarse is not None
            and sum(each is None or each > COARSE for each in point.coarse)
            <= len(point.coarse) // 50
        )
        for point in found.points
    )


def _older_certificate(found: GradientCheck | None) -> Diagnostic:
    if found is None:
        return _not_run(CERTIFICATE, "The defense has not been probed for it yet.")
    if found.missing is not None or found.threshold is None:
        return _not_run(CERTIFICATE, f"There is no exact gradient to check: {found.missing}.")
    return _not_run(
        CERTIFICATE,
        "An older version checked four members together, away from the attacks: run it again.",
    )


def _distance(found: Comparison) -> float:
    """An answer that is not finite counts as having changed by all it is."""
    return 1.0 if found.distance is None else found.distance


def _judge(name: str, value: float, threshold: float, raised: str, passed: str) -> Diagnostic:
    up = value > threshold
    return Diagnostic(
        name=name,
        state="raised" if up else "passed",
        value=value,
        threshold=threshold,
        sentence=raised if up else passed,
    )


def _not_run(name: str, why: str) -> Diagnostic:
    return Diagnostic(name=name, state="not-run", value=None, threshold=None, sentence=why)
