"""Run one unit of a plan: attack, submit, and make its record.

A unit depends only on its batch, its defense, its seed and the records it builds on, never on which
units ran before it in this process. So a run can be resumed, and other processes can run batches.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from dent.attacks import Attack, AttackResult, Defense
from dent.attacks.adaptive import NOT_AVAILABLE
from dent.attacks.adaptive.among import among
from dent.attacks.history import History
from dent.attacks.querier import NoGradientError
from dent.errors import DataError
from dent.evaluation.attack_kinds import has_exact_attack
from dent.evaluation.engine.carry import carried
from dent.evaluation.probe.unit import certificate_record, probe_record
from dent.evaluation.records.folder import Store
from dent.evaluation.records.plan import Batch, Plan, Unit, candidates, seed_of
from dent.evaluation.records.schema import (
    AttackHistory,
    CertificateRecord,
    ProbeRecord,
    UnitRecord,
    UnitTiming,
)
from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.evaluation.results import tells
from dent.evaluation.results.scoring import Piece, piece_of
from dent.evaluation.subject import Prepared
from dent.evaluation.submission.fresh import fresh
from dent.evaluation.submission.guard import Guard
from dent.evaluation.submission.stream import Stream, serve_seed
from dent.evaluation.submission.submission import Submission, clock, merge_traces, submit
from dent.evaluation.submission.submitter import DRAWS, Answers, Submitter
from dent.storage.errors import RecordError
from dent.support.devices import device_of
from dent.threat import ThreatModel

_KEPT_BYTES: Final = 2**29
"""Limit in bytes of the batches, and of the copies of defenses, that are kept for reuse."""
Within = Callable[[int, int], None]
"""A callback that an attack calls after every pass, with (passes done, passes planned)."""


@dataclass(frozen=True)
class Run(Prepared):
    """Everything needed to run a unit.

    Attributes:
        stream: Returns each defense in its state before a batch.
        store: The store of the records.
        guard: Detects a defense that writes into the static model.
        surrogates: Other models to transfer attacks from, by name.
        submitters: The most recently used submitters, by defense and batch index.
    """

    stream: Stream
    store: Store
    guard: Guard
    surrogates: Mapping[str, nn.Module]
    submitters: OrderedDict[tuple[str, int], Submitter] = field(default_factory=OrderedDict)

    @property
    def threat(self) -> ThreatModel:
        """The threat model."""
        return self.subject.threat


def open_run(prepared: Prepared, store: Store) -> Run:
    """Prepare to run units of a plan in this process.

    Args:
        prepared: The prepared evaluation.
        store: The store of the records.
    """
    subject, spec, plan = prepared.subject, prepared.spec, prepared.plan
    lineup = subject.lineup(spec.settings)
    stream = Stream(subject, lineup, plan.batches, spec.settings.seed)
    guard = Guard(subject.model, spec.model.weights)
    needs_surrogates = any(attack.attack == "surrogates" for attack in spec.attacks)
    return Run(
        subject, spec, plan, stream, store, guard, subject.surrogates() if needs_surrogates else {}
    )


class Batches:
    """A loader that puts batches on the model's device and caches the most recently used ones."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._device = device_of(run.subject.model)
        self._held: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()

    def load(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the images (N, C, H, W) and labels (N,) of a batch.

        Raises:
            DataError: The labels in the dataset differ from those in the plan.
        """
        if batch.index not in self._held:
            x, y = self._run.subject.dataset.batch(batch.positions)
            if tuple(y.tolist()) != batch.labels:
                raise DataError(
                    f"the dataset {self._run.spec.dataset.name!r} gives other labels for batch "
                    f"{batch.index} than when the plan was made: a dataset must not change"
                )
            self._held[batch.index] = x.to(self._device), y.to(self._device)
            while len(self._held) > 1 and len(self._held) * x.nbytes > _KEPT_BYTES:
                self._held.popitem(last=False)
        self._held.move_to_end(batch.index)
        return self._held[batch.index]


def execute(run: Run, unit: Unit, batches: Batches, within: Within | None = None) -> None:
    """Run a unit and record it.

    Raises:
        InputError: The defense wrote into the static model. The unit is not recorded.
    """
    start = clock(device_of(run.subject.model))
    if unit.kind == "probe":
        loaded = batches.load(run.plan.batches[0])
        origin = run.stream.origin(unit.defense, 0)
        probed = probe_record(origin, unit, run.subject, run.spec, loaded, guard=run.guard)
        run.guard.check(unit.defense, thorough=True)
        run.store.put(probed)
        return
    if unit.kind == "certificate":
        certificate = certify(run, unit, batches)
        run.guard.check(unit.defense, thorough=True)
        run.store.put(certificate)
        return
    unit_batches = batches_of(run.plan, unit)
    seed = unit_seed(run.spec, unit)
    adversarial, extra, attack_seconds = _submission(run, unit, unit_batches, batches, seed, within)
    static = None
    if unit.kind == "natural" and unit.defense != STATIC:
        static = _static_seconds(run, batches.load(unit_batches[0])[0])
    answers = submit_unit(run, unit, adversarial, batches)
    run.guard.check(unit.defense)
    if unit.kind == "attack" and adversarial is not None:
        natural = torch.cat([batches.load(batch)[0][: batch.attacked] for batch in unit_batches])
        attack, classes = run.subject.attack(unit.attack or ""), answers[0].first.logits.shape[1]
        extra |= tells.of_attack(attack, run.threat, adversarial, natural, classes)
    record = record_of(
        run, unit, answers, start=start, attack=attack_seconds, static=static, **extra
    )
    run.store.put(record, adversarial if unit.kind == "attack" else None)


def record_of(
    run: Run,
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
        loss=tells.loss_of([answer.first for answer in answers], batches_of(run.plan, unit)),
        timing=UnitTiming(
            total=clock(device_of(run.subject.model)) - start,
            attack=attack,
            serve=sum(answer.first.seconds for answer in answers),
            static=static,
        ),
        **extra,
    )


def certify(run: Run, unit: Unit, batches: Batches, *, more: bool = True) -> CertificateRecord:
    """Return the certificate of a defense that the run has probed.

    Args:
        run: The run.
        unit: The certificate unit.
        batches: The source of the batches.
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
        batches.load(run.plan.batches[0]),
        differentiable=probed.zero_gradients is not None,
        more=more,
    )


def submit_unit(
    run: Run, unit: Unit, adversarial: Tensor | None, batches: Batches
) -> list[Answers]:
    """Submit a unit's batches, with the attacked members replaced by `adversarial`.

    Args:
        run: The run.
        unit: The unit, with its defense and batches.
        adversarial: The attacked members of all batches of the unit, (attacked members, C, H, W);
            None submits natural images.
        batches: The source of the batches.
    """
    answers, start = [], 0
    for batch in batches_of(run.plan, unit):
        natural, _ = batches.load(batch)
        x = natural
        if adversarial is not None:
            rows = adversarial[start : start + batch.attacked].to(x)
            x = torch.cat([rows, x[batch.attacked :]])
            start += batch.attacked
        submitter = _submitter(run, unit.defense, batch, natural)
        answers.append(submitter.submit(x, natural_after=unit.kind == "attack"))
    return answers


def submit_once(run: Run, unit: Unit, adversarial: Tensor, batches: Batches) -> Submission:
    """Submit the only batch of a unit to one fresh copy, and query no other copy."""
    (batch,) = batches_of(run.plan, unit)
    x, _ = batches.load(batch)
    seed = serve_seed(run.spec.settings.seed, batch.index)
    defense = run.stream.origin(unit.defense, batch.index).new(seed).defense
    return submit(defense, torch.cat([adversarial.to(x), x[batch.attacked :]]), seed=seed)


def _submitter(run: Run, defense: str, batch: Batch, natural: Tensor) -> Submitter:
    """Return the submitter for a defense and a batch. The latest ones are kept with their state."""
    key = defense, batch.index
    if key not in run.submitters:
        run.submitters[key] = Submitter(
            name=defense,
            origin=run.stream.origin(defense, batch.index),
            natural=natural,
            guard=run.guard,
            seed=serve_seed(run.spec.settings.seed, batch.index),
            attacked=batch.attacked,
            public=run.spec.settings.randomness == "public",
        )
        size = 2 * sum(tensor.nbytes for tensor in run.subject.model.state_dict().values())
        while (
            len(run.submitters) > len(run.spec.defenses)
            and len(run.submitters) * size > _KEPT_BYTES
        ):
            run.submitters.popitem(last=False)
    run.submitters.move_to_end(key)
    return run.submitters[key]


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


def batches_of(plan: Plan, unit: Unit) -> tuple[Batch, ...]:
    """Return the batches of a unit."""
    return plan.batches if unit.batch is None else (plan.batches[unit.batch],)


def unit_seed(spec: EvaluationSpec, unit: Unit) -> int:
    """Return the seed of a unit's attack."""
    return seed_of(spec.settings.seed, "unit", unit.batch, unit.attack)


def _submission(
    run: Run,
    unit: Unit,
    unit_batches: tuple[Batch, ...],
    batches: Batches,
    seed: int,
    within: Within | None,
) -> tuple[Tensor | None, dict[str, Any], float]:
    """Return the attacked members to submit, the record fields about them, and attack seconds."""
    if unit.kind == "natural":
        return None, {}, 0.0
    if unit.kind == "transfer":
        source = _unit_record(run, Unit("attack", STATIC, unit.attack, unit.batch))
        return run.store.adversarial(source), {"tensor": source.tensor}, 0.0
    if unit.kind == "assembled":
        adversarial, sources = assembled(run, unit, unit_batches[0])
        return adversarial, {"sources": sources}, 0.0
    attack = partial(
        _attack(run, unit),
        threat=run.threat,
        seed=seed,
        progress=within,
        shared_seed=seed_of(run.spec.settings.seed, "static", unit.batch),
    )
    defense = as_attacked(run, unit.defense, unit_batches[0], seed, run.surrogates)
    if len(unit_batches) == 1:
        return _attack_batch(run, unit, unit_batches[0], batches, defense, attack)
    loaded = [batches.load(batch) for batch in unit_batches]
    x, y = (torch.cat(tensors) for tensors in zip(*loaded, strict=True))
    result = attack(defense, x, y)
    return result.adversarial, _of_attack(result), result.seconds


def as_attacked(
    run: Run, defense: str, batch: Batch, seed: int, surrogates: Mapping[str, nn.Module]
) -> Defense:
    """Return a defense for an attack on a batch: every query goes to a fresh copy.

    Args:
        run: The run.
        defense: Name of the defense.
        batch: The attacked batch.
        seed: Seed of the attack.
        surrogates: Other models to transfer attacks from, by name.
    """
    known = None
    if run.spec.settings.randomness == "public":
        known = serve_seed(run.spec.settings.seed, batch.index)
    return fresh(run.stream.origin(defense, batch.index), seed, surrogates, known=known)


def _attack(run: Run, unit: Unit) -> Attack:
    return run.subject.attack(unit.attack or "")


def _attack_batch(
    run: Run,
    unit: Unit,
    batch: Batch,
    batches: Batches,
    defense: Defense,
    attack: Callable[..., AttackResult],
) -> tuple[Tensor, dict[str, Any], float]:
    """Attack the members of a batch that were not fooled yet. Fooled ones keep their image."""
    x, y = batches.load(batch)
    images, attacked = x[: batch.attacked], y[: batch.attacked]
    broke = carried(run.spec, batch, unit, run.store.done)
    standing = torch.tensor([record is None for record in broke], device=x.device)
    if not bool(standing.any()):
        result = _not_attacked(images[:0])
    else:
        target = among(defense, x, y, batch.attacked)
        result = _try(run, attack, target, images[standing], attacked[standing])
    if bool(standing.all()):
        return result.adversarial, _of_attack(result), result.seconds
    adversarial = carried_images(run, broke, images)
    adversarial[standing] = result.adversarial.to(images)
    described = _of_attack(_widened(result, standing))
    described["carried"] = tuple((~standing).tolist())
    return adversarial, described, result.seconds


def carried_images(run: Run, broke: Sequence[UnitRecord | None], natural: Tensor) -> Tensor:
    """Return the images that broke the members left out, and the natural images of the others.

    Args:
        run: The run.
        broke: Per attacked member, the record of the attack that broke it; None if it is attacked.
        natural: The natural images of the attacked members, (attacked members, C, H, W).
    """
    images = natural.clone()
    for record in {record.key: record for record in broke if record is not None}.values():
        if record.kind != "natural":
            rows = [record is source for source in broke]
            images[: len(broke)][rows] = run.store.adversarial(_owner(run, record)).to(images)[rows]
    return images


def _try(
    run: Run, attack: Callable[..., AttackResult], target: Defense, x: Tensor, y: Tensor
) -> AttackResult:
    try:
        return attack(target, x, y)
    except NoGradientError as missing:
        if not has_exact_attack(run.spec):  # in a suite, other attacks fit it
            raise
        return _not_attacked(x, f"{NOT_AVAILABLE}{missing}")


def _widened(result: AttackResult, standing: Tensor) -> AttackResult:
    """Return the result for all members. Those not attacked, broken before, count as fooled."""

    def over_all(fooled: Tensor) -> Tensor:
        whole = torch.ones_like(standing)
        whole[standing] = fooled.to(whole)
        return whole

    def counts(values: tuple[int, ...]) -> tuple[int, ...]:
        each = iter(values)
        return tuple(next(each) if stands else 0 for stands in standing.tolist())

    return replace(
        result,
        fooled=over_all(result.fooled),
        fooled_after={name: over_all(part) for name, part in result.fooled_after.items()},
        gradients=counts(result.gradients),
        zero_by_member=counts(result.zero_by_member),
        history=None if result.history is None else _with_carried(result.history, standing),
    )


def _with_carried(history: History, standing: Tensor) -> History:
    carried = int((~standing).sum())
    return replace(history, broken=tuple(count + carried for count in history.broken))


def _not_attacked(x: Tensor, *notes: str) -> AttackResult:
    """Return the natural images: the attack does not fit the defense, or no members are left."""
    zeros = (0,) * len(x)
    return AttackResult(
        adversarial=x,
        fooled=torch.zeros(len(x), dtype=torch.bool, device=x.device),
        fooled_after={},
        queries=0,
        backwards=0,
        seconds=0.0,
        non_finite=0,
        gradients=zeros,
        zero_by_member=zeros,
        notes=notes,
    )


def _of_attack(result: AttackResult) -> dict[str, Any]:
    return {
        "claimed": tuple(result.fooled.tolist()),
        "claimed_after": {name: int(fooled.sum()) for name, fooled in result.fooled_after.items()},
        "queries": result.queries,
        "backwards": result.backwards,
        "non_finite": result.non_finite,
        "gradients": result.gradients,
        "zero_gradients": result.zero_by_member,
        "history": None if result.history is None else AttackHistory(**asdict(result.history)),
        "notes": tuple(result.notes),
    }


def assembled(run: Run, unit: Unit, batch: Batch) -> tuple[Tensor, tuple[int, ...]]:
    """Return the images of an assembled batch, and for each the index of the candidate it is from.

    Each member gets the image that first broke it, or else that of the strongest submission.
    """
    records = [
        _unit_record(run, Unit(kind, unit.defense, attack, unit.batch))
        for kind, attack in candidates(run.spec, unit.defense, unit.attack)
    ]
    pieces = [piece_of(batch, record) for record in records]
    strongest = min(range(len(records)), key=lambda index: sum(pieces[index].chooses))
    sources = tuple(_worst_for(member, pieces, strongest) for member in range(batch.attacked))
    tensors = {index: run.store.adversarial(_owner(run, records[index])) for index in set(sources)}
    rows = [tensors[index][member] for member, index in enumerate(sources)]
    return torch.stack(rows), sources


def _worst_for(member: int, pieces: Sequence[Piece], strongest: int) -> int:
    """Return the first submission in which a member was correct least often, or else the strongest.

    The strongest counts if the member was always correct in all submissions.
    """
    worst = min(range(len(pieces)), key=lambda index: pieces[index].chooses[member])
    return worst if pieces[worst].chooses[member] < 1 else strongest


def _owner(run: Run, record: UnitRecord) -> UnitRecord:
    """Return the record that owns the tensor: for a transfer, the attack on the static model."""
    if record.kind == "attack":
        return record
    return _unit_record(run, Unit("attack", STATIC, record.attack, record.batch))


def _unit_record(run: Run, unit: Unit) -> UnitRecord:
    record = run.store.done.get(unit.key)
    if not isinstance(record, UnitRecord):
        raise RecordError(f"{unit.key} is not recorded, though another unit was made from it")
    return record


def _static_seconds(run: Run, x: Tensor) -> float:
    x = x.clone()  # the model may write into its input
    with torch.no_grad():
        start = clock(x.device)
        run.subject.model(x)
        return clock(x.device) - start
