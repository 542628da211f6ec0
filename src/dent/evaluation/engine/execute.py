"""Run one unit of a plan: attack, submit, and make its record.

A unit depends only on its batch, its defense, its seed and the records it builds on, never on which
units ran before it in this process. So a run can be resumed, and other processes can run batches.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dent.attacks.querier import OnPass
from dent.evaluation.engine.adversarial import adversarial_of
from dent.evaluation.engine.context import RunContext, batches_of, unit_seed
from dent.evaluation.probe.unit import certificate_record, probe_record
from dent.evaluation.records.plan import Unit, seed_of
from dent.evaluation.records.schema import CertificateRecord, ProbeRecord, UnitRecord, UnitTiming
from dent.evaluation.records.spec import STATIC
from dent.evaluation.submission.measures import attack_measures, mean_loss
from dent.evaluation.submission.stream import serve_seed
from dent.evaluation.submission.submission import Submission, clock, merge_traces, submit
from dent.evaluation.submission.submitter import DRAWS, Answers
from dent.storage.errors import RecordError
from dent.support.devices import device_of


def execute(run: RunContext, unit: Unit, within: OnPass | None = None) -> None:
    """Run a unit and record it.

    Args:
        run: The run.
        unit: The unit.
        within: Called after every pass of an attack.

    Raises:
        InputError: The defense wrote into the static model. The unit is not recorded.
    """
    start = clock(device_of(run.subject.model))
    if unit.kind == "probe":
        loaded = run.load(run.plan.batches[0])
        origin = run.stream.origin(unit.defense, 0)
        probed = probe_record(origin, unit, run.subject, run.spec, loaded, guard=run.guard)
        run.guard.check(unit.defense, thorough=True)
        run.store.put(probed)
        return
    if unit.kind == "certificate":
        certificate = certify(run, unit)
        run.guard.check(unit.defense, thorough=True)
        run.store.put(certificate)
        return
    unit_batches = batches_of(run.plan, unit)
    adversarial, extra, attack_seconds = adversarial_of(run, unit, within)
    static = None
    if unit.kind == "natural" and unit.defense != STATIC:
        static = _static_seconds(run, run.load(unit_batches[0])[0])
    answers = submit_unit(run, unit, adversarial)
    run.guard.check(unit.defense)
    if unit.kind == "attack" and adversarial is not None:
        natural = torch.cat([run.load(batch)[0][: batch.attacked] for batch in unit_batches])
        attack, classes = run.subject.attack(unit.attack or ""), answers[0].first.logits.shape[1]
        extra |= attack_measures(attack, run.threat, adversarial, natural, classes)
    record = record_of(
        run, unit, answers, start=start, attack=attack_seconds, static=static, **extra
    )
    run.store.put(record, adversarial if unit.kind == "attack" else None)


def record_of(
    run: RunContext,
    unit: Unit,
    answers: Sequence[Answers],
    *,
    start: float,
    attack: float = 0.0,
    static: float | None = None,
    **extra: Any,
) -> UnitRecord:
    """Return the record of a unit whose batches were submitted.

    Args:
        run: The run.
        unit: The unit.
        answers: The answers to each batch of the unit.
        start: Time at which the unit began, by `clock`.
        attack: Seconds that the attack took.
        static: Seconds of a static forward.
        extra: Other fields of the record.
    """
    return UnitRecord(
        kind=unit.kind,  # type: ignore[arg-type]
        defense=unit.defense,
        attack=unit.attack,
        batch=unit.batch,
        seed=unit_seed(run.spec, unit),
        served=tuple(prediction for answer in answers for prediction in answer.first.predictions),
        **answer_fields(answers),
        trace=merge_traces([answer.first.trace for answer in answers]),
        loss=mean_loss([answer.first for answer in answers], batches_of(run.plan, unit)),
        timing=UnitTiming(
            total=clock(device_of(run.subject.model)) - start,
            attack=attack,
            serve=sum(answer.first.seconds for answer in answers),
            static=static,
        ),
        **extra,
    )


def certify(run: RunContext, unit: Unit, *, more: bool = True) -> CertificateRecord:
    """Return the certificate of a defense that the run has probed.

    Args:
        run: The run.
        unit: The certificate unit.
        more: Whether to attack again with more iterations, if the settings say so.

    Raises:
        RecordError: The probe of the defense is not recorded.
    """
    probed = run.store.done.get(Unit("probe", unit.defense, None, 0).key)
    if not isinstance(probed, ProbeRecord):
        raise RecordError(f"{unit.key} comes before the probe of its defense")
    return certificate_record(
        run.stream.origin(unit.defense, 0),
        unit,
        run.subject,
        run.spec,
        run.load(run.plan.batches[0]),
        differentiable=probed.zero_gradients is not None,
        more=more,
    )


def submit_unit(run: RunContext, unit: Unit, adversarial: Tensor | None) -> list[Answers]:
    """Submit a unit's batches, with the attacked members replaced by `adversarial`.

    Args:
        run: The run.
        unit: The unit, with its defense and batches.
        adversarial: The attacked members of all batches of the unit, (attacked members, C, H, W);
            None submits natural images.
    """
    answers, start = [], 0
    for batch in batches_of(run.plan, unit):
        x, _ = run.load(batch)
        if adversarial is not None:
            rows = adversarial[start : start + batch.attacked].to(x)
            x = torch.cat([rows, x[batch.attacked :]])
            start += batch.attacked
        submitter = run.submitter(unit.defense, batch)
        answers.append(submitter.submit(x, natural_after=unit.kind == "attack"))
    return answers


def submit_once(
    run: RunContext, unit: Unit, adversarial: Tensor, draw: int | None = None
) -> Submission:
    """Submit the only batch of a unit to one fresh copy, and query no other copy.

    Args:
        run: The run.
        unit: The unit.
        adversarial: The attacked members, (attacked members, C, H, W).
        draw: The number of the draw whose seed to use, from 1; None for the submission that counts.
    """
    (batch,) = batches_of(run.plan, unit)
    x, _ = run.load(batch)
    seed = serve_seed(run.spec.settings.seed, batch.index)
    seed = seed if draw is None else seed_of(seed, "draw", draw)
    defense = run.stream.origin(unit.defense, batch.index).new(seed).defense
    return submit(defense, torch.cat([adversarial.to(x), x[batch.attacked :]]), seed=seed)


def answer_fields(answers: Sequence[Answers]) -> dict[str, Any]:
    """Return the fields of `UnitRecord` with the answers to several batches other than `served`."""
    names = {name for answer in answers for name in answer.views}
    views = {
        name: tuple(
            prediction
            for answer in answers
            for prediction in answer.views.get(name, answer.first.predictions)
        )
        for name in sorted(names)
    }
    apart: dict[str, float] = {}
    for answer in answers:
        for name, value in answer.apart.items():
            apart[name] = max(value, apart.get(name, 0.0))
    draws: tuple[tuple[int | None, ...], ...] = ()
    if any(answer.draws for answer in answers):
        draws_by_answer = [
            answer.draws or (answer.first.predictions,) * DRAWS for answer in answers
        ]
        draws = tuple(sum(rows, ()) for rows in zip(*draws_by_answer, strict=True))
    return {"views": views, "apart": apart, "draws": draws}


def _static_seconds(run: RunContext, x: Tensor) -> float:
    x = x.clone()  # the model may write into its input
    with torch.no_grad():
        start = clock(x.device)
        run.subject.model(x)
        return clock(x.device) - start
