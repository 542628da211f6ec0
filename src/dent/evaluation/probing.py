"""The unit that asks a defense about the first batch, and its record."""

import math
from typing import Final

from torch import Tensor

from dent.attacks import Defense, Queries
from dent.evaluation import certification
from dent.evaluation.follow_ups import huge_eps, more_iterations, passes
from dent.evaluation.plan import Plan, Unit, seed_of
from dent.evaluation.probe import Probe, few_of
from dent.evaluation.records import FollowUp, GradientCheck, ProbeRecord, UnitTiming
from dent.evaluation.serving import clock, reset
from dent.evaluation.spec import EvaluationSpec
from dent.evaluation.subject import Subject
from dent.evaluation.suite import looks_through

_CHEAP: Final = Queries(5, 1)
"""The probe's own questions: two whole batches, and six halves, one of them with a gradient."""


def probe_passes(subject: Subject, spec: EvaluationSpec, plan: Plan) -> Queries:
    """What a probe asks at most, in passes of the first batch."""
    size = plan.batches[0].size
    few = few_of(size)
    asked = _CHEAP
    if looks_through(spec):
        asked = asked + certification.passes(few, size)
    if spec.settings.diagnostics == "cheap":
        return asked
    more = passes(subject.attacks, len(spec.dataset.classes), subject.threat.norm, few)
    return asked + Queries(*(math.ceil(each * few / size) for each in more))


def probe_record(
    defense: Defense,
    unit: Unit,
    subject: Subject,
    spec: EvaluationSpec,
    batch: tuple[Tensor, Tensor],
    *,
    follow_ups: bool = True,
) -> ProbeRecord:
    """Probe a defense, as far as the settings say.

    Args:
        defense: Whom to ask; forgets before and after, where it can.
        unit: The unit that is recorded.
        subject: For the attacks and the threat model.
        spec: For the settings.
        batch: Images and labels of the first batch.
        follow_ups: Leave out the extra attacks of the full diagnostics where False.
    """
    x, y = batch
    start = clock(x.device)
    seed = seed_of(spec.settings.seed, "probe")
    probe = Probe(defense, x, y, subject.threat.bounds, seed)
    probabilities = probe.probabilities()
    alone, strangers, permuted = probe.alone(), probe.strangers(), probe.permuted()
    right, useless = probe.gradients()
    repeated, again = probe.repeated(), probe.again()
    huge: FollowUp | None = None
    more: tuple[FollowUp, ...] | None = None
    check: GradientCheck | None = None
    few = x[: probe.members], y[: probe.members]
    if looks_through(spec):
        check = certification.certify(defense, *few, seed)
    if follow_ups and spec.settings.diagnostics == "full" and useless is None:
        more = ()  # there is no gradient to follow
    elif follow_ups and spec.settings.diagnostics == "full":
        huge, more = _follow_ups(defense, few, subject, seed)
    reset(defense)
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
        gradient_rows=right,
        zero_gradients=useless,
        huge_eps=huge,
        more_iterations=more,
        gradient_check=check,
        timing=UnitTiming(total=clock(x.device) - start, attack=0.0, serve=0.0, static=None),
    )


def _follow_ups(
    defense: Defense, few: tuple[Tensor, Tensor], subject: Subject, seed: int
) -> tuple[FollowUp, tuple[FollowUp, ...]]:
    x, y = few
    longer = [
        more_iterations(defense, attack, x, y, subject.threat, seed) for attack in subject.attacks
    ]
    huge = huge_eps(defense, x, y, subject.threat, seed)
    return huge, tuple(found for found in longer if found is not None)
