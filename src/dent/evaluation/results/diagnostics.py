"""Signs that a number should not be taken at its word, read from the records.

What was not looked at says so: it never counts as passed.
"""

from collections.abc import Iterator, Mapping, Sequence
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
    asked = list(_of_probe(probe, dependence, apart or {})) if probe else list(_not_probed())
    own = [each for each in attacks if (stands or {}).get(each.attack or "") in (None, "white-box")]
    return (
        *asked,
        _black_box(own),
        _transfer(name, attacks, own, has_static),
        _more_iterations(probe),
        _huge_eps(probe),
        _mismatch(attacks),
        _with_gradients(apart or {}),
        _blind(symptoms),
        _not_copied(probe),
        _non_finite(attacks, non_finite),
        *([certificate_of(probe)] if looks_through else []),
    )


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


def _of_probe(
    probe: ProbeRecord, dependence: Dependence, apart: Mapping[str, float]
) -> Iterator[Diagnostic]:
    drawn = randomized(probe)
    yield _judge(
        "randomized",
        _distance(probe.repeated) if drawn else 0.0,
        DISTANCE,
        "The same batch is answered differently with another seed: attacks need expectation over "
        "randomness, and a single submission is luck.",
        "The same batch is answered the same whatever the seed.",
    )
    remembered = max(
        (apart[name] for name in (EXPERIENCED, NATURAL_AFTER) if name in apart), default=0
    )
    yield _judge(
        "carries state",
        max(
            _distance(probe.again) if stateful(probe) else 0.0,
            probe.again_gradient or 0,
            remembered,
        ),
        DISTANCE,
        "The same batch and seed are answered differently after other queries: results depend on "
        "what was asked before.",
        "The same batch and seed are answered the same after other queries.",
    )
    yield _judge(
        "not logits",
        probe.probabilities / probe.rows,
        0.5,
        "The outputs are probabilities: losses on logits lose their gradient.",
        "The outputs are not probabilities.",
    )
    yield _gradient(probe)
    yield from _dependence(probe, dependence)


def _dependence(probe: ProbeRecord, dependence: Dependence) -> Iterator[Diagnostic]:
    measured = depends(probe)
    if measured is None:
        why = "It cannot be measured on a batch of one, nor where answers move by themselves."
        yield _not_run("batch dependent", why)
        yield _not_run("undeclared dependence", why)
        return
    furthest = max(map(_distance, other_batches(probe)))
    yield _judge(
        "batch dependent",
        furthest if any(map(moved, other_batches(probe))) else 0.0,
        DISTANCE,
        "A prediction depends on the rest of its batch: attacks on the other members count, and "
        "the worst case is taken per batch.",
        "No prediction changed with the rest of its batch.",
    )
    yield _judge(
        "undeclared dependence",
        float(measured and not dependence.declared),
        0,
        "The defense declares that predictions do not depend on their batch, and they do: attacks "
        "that trusted it are too weak.",
        "What the defense declares of its batches is not contradicted.",
    )


def _gradient(probe: ProbeRecord) -> Diagnostic:
    name = "zero gradient"
    sentence = "Correctly classified members have no input gradient: white-box attacks are blind."
    if probe.zero_gradients is None:
        return _judge(name, 1.0, ZERO_GRADIENT, sentence, "")
    if not probe.gradient_rows:
        return _not_run(name, "No member of the probe was classified correctly.")
    share = probe.zero_gradients / probe.gradient_rows
    return _judge(name, share, ZERO_GRADIENT, sentence, "The input gradients are not zero.")


def _black_box(attacks: Sequence[AttackSummary]) -> Diagnostic:
    name = "black-box beats white-box"
    own = [found for found in attacks if found.ran]
    white = [found.served for found in own if not found.black_box]
    black = [found.served for found in own if found.black_box]
    within = [gain for found in own for gain in _square_gains(found)]
    comparable = {count.total for count in (*white, *black)}
    if black and white and len(comparable) == 1:
        within.append(min(c.correct for c in white) - min(c.correct for c in black))
    if not within:
        return _not_run(name, "No black-box attack ran beside a white-box one.")
    return _judge(
        name,
        float(max(within)),
        0,
        "An attack by queries alone broke members that gradients did not: the gradients mislead.",
        "Gradients broke at least what queries alone did.",
    )


def _square_gains(found: AttackSummary) -> Iterator[int]:
    """How many more fell to Square, in a set in which it came after gradients."""
    parts = list(found.after.items())
    for (_, before), (name, after) in pairwise(parts):
        if name == "square":
            yield before.correct - after.correct


def _transfer(
    name: str, attacks: Sequence[AttackSummary], own: Sequence[AttackSummary], has_static: bool
) -> Diagnostic:
    title = "transfer beats white-box"
    white = [found.served for found in own if found.ran and not found.black_box]
    moved_over = [found.served for found in attacks if found.kind == "transfer" and found.batches]
    if name == STATIC or not (white and moved_over):
        why = (
            "The static model is what is transferred from."
            if name == STATIC
            else "Nothing was transferred from the static model."
            if has_static
            else "There is no static reference to transfer from."
        )
        return _not_run(title, why)
    gain = min(c.correct for c in white) - min(c.correct for c in moved_over)
    return _judge(
        title,
        float(gain),
        0,
        "What was found against the static model breaks the defense more than attacks on the "
        "defense itself: its gradients mislead, and its own figures overestimate it.",
        "Attacks on the defense itself broke at least what those on the static model did.",
    )


def _more_iterations(probe: ProbeRecord | None) -> Diagnostic:
    name = "more iterations still help"
    if probe is None or probe.more_iterations is None:
        return _not_run(name, _ASK)
    gains = [(found.before or 0) - found.correct for found in probe.more_iterations]
    if not gains:
        return _not_run(name, "No attack followed a gradient for some iterations.")
    return _judge(
        name,
        float(max(gains)),
        0,
        "Twice the iterations broke more members: the attack had not converged.",
        "Twice the iterations broke no more members.",
    )


def _huge_eps(probe: ProbeRecord | None) -> Diagnostic:
    name = "huge eps does not break all"
    if probe is not None and probe.zero_gradients is None:
        return _not_run(name, "The defense has no gradient to follow.")
    if probe is None or probe.huge_eps is None:
        return _not_run(name, _ASK)
    found = probe.huge_eps
    return _judge(
        name,
        found.correct / found.total,
        0,
        "With an eps at which any image can become any other, members are still right: the "
        "gradients lead nowhere.",
        "With an eps at which any image can become any other, nobody is right.",
    )


def _mismatch(attacks: Sequence[AttackSummary]) -> Diagnostic:
    name = "served differs from claimed"
    own = [found for found in attacks if found.claimed is not None and found.batches]
    if not own:
        return _not_run(name, "No attack ran on the defense itself.")
    shares = [
        (found.claimed_but_served + found.served_wrong_unclaimed) / found.served.total
        for found in own
    ]
    return _judge(
        name,
        max(shares),
        MISMATCH,
        "What attacks saw is not what is served when their batches are submitted again; only what "
        "is served counts.",
        "What attacks saw is what is served.",
    )


def _non_finite(attacks: Sequence[AttackSummary], natural: int) -> Diagnostic:
    rows = natural + sum(found.non_finite + found.non_finite_in_attack for found in attacks)
    return _judge(
        "non-finite",
        float(rows),
        0,
        "Some answers were not finite; they count as wrong.",
        "All answers were finite.",
    )


def _with_gradients(apart: Mapping[str, float]) -> Diagnostic:
    return _judge(
        "served differs with gradients",
        apart.get(WITH_GRADIENTS, 0.0),
        DISTANCE,
        "The defense answers otherwise when it is asked with gradients, as attacks ask: they "
        "attack something else than what is served.",
        "No answer changed when it was asked with gradients, as attacks ask.",
    )


def _blind(symptoms: Symptoms | None) -> Diagnostic:
    name = "no gradient where members stand"
    if symptoms is None or symptoms.blind is None:
        return _not_run(name, "No attack that followed a gradient said of whom it had one.")
    return _judge(
        name,
        float(symptoms.blind),
        0,
        "Members stand for which no attack had a gradient to follow.",
        "For every member that stands, an attack had a gradient to follow.",
    )


def _not_copied(probe: ProbeRecord | None) -> Diagnostic:
    name = "cannot be copied"
    if probe is None or probe.calls is None:
        return _not_run(name, "The defense has not been copied.")
    return _judge(
        name,
        float(probe.uncopied is not None),
        0,
        f"{probe.uncopied}. So all answers are of a defense that has answered before.",
        "What counts was answered by copies that had answered nothing before.",
    )


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


def _not_probed() -> Iterator[Diagnostic]:
    names = (
        "randomized",
        "carries state",
        "not logits",
        "zero gradient",
        "batch dependent",
        "undeclared dependence",
    )
    for name in names:
        yield _not_run(name, "The defense has not been probed yet.")
