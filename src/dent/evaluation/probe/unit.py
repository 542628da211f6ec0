"""The units that probe a defense with the first batch, and their records."""

import math
from typing import Any, Final

from torch import Tensor

from dent.attacks import Queries
from dent.attacks.adaptive import AdaptiveAPGD
from dent.evaluation.attack_kinds import has_exact_attack
from dent.evaluation.probe import gradient_check
from dent.evaluation.probe.follow_ups import huge_eps, huge_passes, more_iterations, passes
from dent.evaluation.probe.questions import Probe, few_of
from dent.evaluation.records.plan import Unit, seed_of
from dent.evaluation.records.schema import (
    CertificateRecord,
    FollowUp,
    ProbeRecord,
    UnitTiming,
)
from dent.evaluation.records.spec import EvaluationSpec
from dent.evaluation.subject import Prepared, Subject
from dent.evaluation.submission.fresh import Origin
from dent.evaluation.submission.guard import Guard
from dent.evaluation.submission.submission import clock
from dent.support.warned import own_batches

_CHEAP: Final = Queries(10, 3)
"""Cost of the probe's own queries: two whole batches, and some halves, three with a gradient."""
_PAIRS: Final = 12
"""Number of queries about two members."""


def probe_passes(prepared: Prepared) -> Queries:
    """Return the passes of the first batch that a probe takes: more if the defense keeps state."""
    size = prepared.plan.batches[0].size
    total = _CHEAP + Queries(math.ceil(_PAIRS * 2 / size), 0)
    if prepared.spec.schedule == "by-attack":
        return total
    return total + certificate_passes(prepared)


def certificate_passes(prepared: Prepared) -> Queries:
    """Return the passes of the first batch that the certificate and the extra attacks take."""
    subject, spec = prepared.subject, prepared.spec
    size = prepared.plan.batches[0].size
    few, total = few_of(size), Queries(0, 0)
    if has_exact_attack(spec):
        total = total + gradient_check.passes(size) + huge_passes(spec)
    if spec.settings.diagnostics == "cheap":
        return total
    more = passes(subject.attacks, len(spec.dataset.classes), subject.threat.norm, few)
    return total + Queries(*(math.ceil(count * few / size) for count in more)) + huge_passes(spec)


@own_batches()
def probe_record(
    origin: Origin,
    unit: Unit,
    subject: Subject,
    spec: EvaluationSpec,
    batch: tuple[Tensor, Tensor],
    *,
    guard: Guard,
    more: bool = True,
) -> ProbeRecord:
    """Probe a defense and return the record.

    A run by batch checks the gradient and runs the extra attacks here as well.

    Args:
        origin: The defense before its first query.
        unit: The unit that is recorded.
        subject: The source of the attacks and the threat model.
        spec: The source of the settings.
        batch: Images and labels of the first batch.
        guard: Detects writes to the static model.
        more: Whether to attack again with more iterations, if the settings say so.

    Raises:
        InputError: The defense wrote into the static model, predicts otherwise if it is called, or
            lacks logits of some classes.
    """
    x, y = batch
    start = clock(x.device)
    seed = seed_of(spec.settings.seed, "probe")
    probe = Probe(origin, x, y, subject.threat.bounds, seed)
    guard.check_copy(unit.defense, probe.first, thorough=True)
    probe.check_classes(len(spec.dataset.classes))
    probe.check_call()
    probabilities = probe.probabilities()
    alone, strangers, permuted = probe.alone(), probe.strangers(), probe.permuted()
    gradient_rows, zero_gradients = probe.gradients()
    repeated, (again, again_gradient) = probe.repeated(), probe.again()
    shares = probe.shares()
    checks: dict[str, Any] = {}
    if spec.schedule == "by-batch":
        differentiable = zero_gradients is not None
        checks = _checks(origin, subject, spec, batch, differentiable=differentiable, more=more)
    return ProbeRecord(
        defense=unit.defense,
        seed=seed,
        repeated=repeated,
        again=again,
        alone=alone,
        strangers=strangers,
        permuted=permuted,
        probabilities=probabilities,
        rows=len(x),
        gradient_rows=gradient_rows,
        zero_gradients=zero_gradients,
        calls=probe.calls,
        again_gradient=again_gradient,
        uncopied=origin.missing,
        shares=shares,
        **checks,
        timing=UnitTiming(total=clock(x.device) - start, attack=0.0, serve=0.0, static=None),
    )


@own_batches()
def certificate_record(
    origin: Origin,
    unit: Unit,
    subject: Subject,
    spec: EvaluationSpec,
    batch: tuple[Tensor, Tensor],
    *,
    differentiable: bool,
    more: bool = True,
) -> CertificateRecord:
    """Check the gradient of a defense and run the extra attacks, and return the record.

    The settings decide which of these run.

    Args:
        origin: The defense before its first query.
        unit: The unit that is recorded.
        subject: The source of the attacks and the threat model.
        spec: The source of the settings.
        batch: Images and labels of the first batch.
        differentiable: Whether the probe found a gradient to the input.
        more: Whether to attack again with more iterations, if the settings say so.
    """
    start = clock(batch[0].device)
    checks = _checks(origin, subject, spec, batch, differentiable=differentiable, more=more)
    seconds = clock(batch[0].device) - start
    return CertificateRecord(
        defense=unit.defense,
        seed=seed_of(spec.settings.seed, "probe"),
        **checks,
        timing=UnitTiming(total=seconds, attack=0.0, serve=0.0, static=None),
    )


@own_batches()
def attacks_with_more_iterations(
    origin: Origin,
    subject: Subject,
    spec: EvaluationSpec,
    batch: tuple[Tensor, Tensor],
    *,
    differentiable: bool,
) -> tuple[FollowUp, ...]:
    """Run each attack with its own number of iterations and with twice as many, on a few members.

    Args:
        origin: The defense before its first query.
        subject: The source of the attacks and the threat model.
        spec: The source of the settings.
        batch: Images and labels of the first batch.
        differentiable: Whether the probe found a gradient to the input. If not, no attack runs.
    """
    few, seed = few_of(len(batch[0])), seed_of(spec.settings.seed, "probe")
    x, y = (tensor[:few] for tensor in batch)
    return tuple(
        follow_up
        for attack in (subject.attacks if differentiable else ())
        if (follow_up := more_iterations(origin, attack, x, y, subject.threat, seed)) is not None
    )


def _checks(
    origin: Origin,
    subject: Subject,
    spec: EvaluationSpec,
    batch: tuple[Tensor, Tensor],
    *,
    differentiable: bool,
    more: bool,
) -> dict[str, Any]:
    """Return the record fields about the gradient and the extra attacks."""
    x, y = batch
    seed, full = seed_of(spec.settings.seed, "probe"), spec.settings.diagnostics == "full"
    checks: dict[str, Any] = {}
    if has_exact_attack(spec):
        checks["gradient"] = gradient_check.check_gradient(
            origin, x, y, subject.threat, seed, _submissions(subject)
        )
    if differentiable and (full or has_exact_attack(spec)):
        checks["huge_eps"] = huge_eps(origin, x, y, subject.threat, seed)
    if more and full:
        checks["more_iterations"] = attacks_with_more_iterations(
            origin, subject, spec, batch, differentiable=differentiable
        )
    return checks


def _submissions(subject: Subject) -> int:
    """Return the largest number of submissions over which an attack averages a gradient."""
    return max(
        (each.submissions for each in subject.attacks if isinstance(each, AdaptiveAPGD)),
        default=1,
    )
