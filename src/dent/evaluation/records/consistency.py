"""Check that the records of a run are consistent, so that readers need not check again.

Types ensure only that a count is a count. These functions check that a count is not larger than its
total, that lists have the expected lengths, that nothing occurs twice, and that sums are finite.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise
from typing import Final

from dent.errors import ConfigError
from dent.evaluation.records.plan import (
    Batch,
    Plan,
    attacked_per_batch,
    candidates,
    challenge_file,
    targets_of,
    tensor_file,
)
from dent.evaluation.records.probe_answers import DISTANCE
from dent.evaluation.records.schema import (
    AttackHistory,
    CertificateRecord,
    ChallengeRecord,
    Comparison,
    FollowUp,
    GradientRecord,
    JournalRecord,
    ProbeRecord,
    Session,
    TensorRef,
    Trace,
    UnitRecord,
    UnitTiming,
)
from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.support.plural import counted
from dent.threat import ThreatModel

MOST_UNITS: Final = 10**7
"""Maximum number of units of a run."""
_MOST: Final = 2**63 - 1
"""Largest count, id, label or seed."""
_FAR: Final = 1e12
"""Largest plausible value of any measurement, in any unit. The sum over all units is finite."""
_ROUNDING: Final = 0.01
"""Share of eps by which float32 rounding may exceed it. For tiny eps, the share is larger."""
_POINTS: Final = 1000
"""Maximum number of points in the history of an attack. This version writes fewer."""
_TURNED: Final = 4
"""Smallest batch of which a probe asks several members by themselves, also in reverse order."""
_OF_ATTACKS: Final = (
    "claimed_after",
    "carried",
    "queries",
    "backwards",
    "non_finite",
    "planned",
    "used",
    "gradients",
    "zero_gradients",
    "history",
    "notes",
)
"""Fields that only an attack can fill, besides its claim. Challenges have `used` as well."""
_LARGEST_IMAGE: Final = 2**24
"""Maximum number of values in one image."""


def of_spec(spec: EvaluationSpec) -> Iterator[str]:
    """Yield the problems of a specification by itself."""
    for kind, names in (
        ("defense", [entry.name for entry in spec.defenses]),
        ("attack", [entry.name for entry in spec.attacks]),
    ):
        if len(set(names)) < len(names):
            yield f"two of spec.{kind}s have the same name"
        if not all(name.strip() for name in names):
            yield f"one of spec.{kind}s has no name"
    if not spec.defenses:
        yield "spec.defenses is empty"
    if not 0 < spec.dataset.size <= _MOST:
        yield f"spec.dataset.size is {_shown(spec.dataset.size)}"
    try:
        ThreatModel(spec.threat.norm, spec.threat.eps, spec.threat.bounds)
    except ConfigError as error:
        yield f"spec.threat: {error}"


def of_sessions(sessions: Sequence[Session]) -> Iterator[str]:
    """Yield the problems of the sessions of a run."""
    for index, session in enumerate(sessions):
        if not all(seconds <= _FAR for seconds in session.timing.values()):
            yield f"sessions.{index}.timing is out of range"
        if max(session.units, session.threads, session.processors) > _MOST:
            yield f"sessions.{index} counts more than can be"


def of_plan(spec: EvaluationSpec, plan: Plan) -> Iterator[str]:
    """Yield the problems of a plan, by itself and with its specification."""
    if not plan.batches:
        yield "there are no batches"
    attacked_before: set[int] = set()
    for index, batch in enumerate(plan.batches):
        yield from (f"batches.{index}: {problem}" for problem in _of_batch(spec, batch, index))
        attacked = batch.positions[: batch.attacked]
        if attacked_before.intersection(attacked):
            yield f"batches.{index}: a sample is attacked that another batch attacks"
        attacked_before.update(attacked)
    wanted = spec.settings.ids
    if wanted is not None and wanted != tuple(
        sorted(id_ for batch in plan.batches for id_ in batch.ids[: batch.attacked])
    ):
        yield "the samples attacked are not those of settings.ids"
    yield from _of_size(spec, plan, attacked_before)
    kinds = 2 + 2 * len(spec.attacks)
    if len(spec.defenses) * kinds * (len(plan.batches) + 1) > MOST_UNITS:
        yield f"the run has more than {MOST_UNITS} units"


def _of_size(spec: EvaluationSpec, plan: Plan, attacked: AbstractSet[int]) -> Iterator[str]:
    """Yield how the batches are not those that the settings ask for, without the dataset."""
    asked, per_batch = spec.samples, attacked_per_batch(spec.settings)
    found = sum(batch.attacked for batch in plan.batches)
    if found != asked:
        yield f"{counted(found, 'sample')} are attacked, and the settings ask for {asked}"
        return
    if spec.settings.ids is None and attacked != set(range(asked)):
        yield f"the samples attacked are not the first {asked} of the dataset"
    last = asked - per_batch * (len(plan.batches) - 1)
    for batch in plan.batches:
        expected = last if batch.index == len(plan.batches) - 1 else per_batch
        clean = spec.settings.batch_size - per_batch
        if (batch.attacked, batch.size - batch.attacked) != (expected, clean):
            yield (
                f"batches.{batch.index}: {batch.attacked} of {counted(batch.size, 'member')} "
                f"are attacked, and the settings ask for {expected} beside {clean}"
            )


def _of_batch(spec: EvaluationSpec, batch: Batch, index: int) -> Iterator[str]:
    size = batch.size
    if batch.index != index:
        yield f"its index is {_shown(batch.index)}"
    if not len(batch.ids) == len(batch.labels) == size:
        yield (
            f"{counted(size, 'position')}, {counted(len(batch.ids), 'id')} and "
            f"{counted(len(batch.labels), 'label')}"
        )
    if not 0 < batch.attacked <= size:
        yield f"{_shown(batch.attacked)} of {counted(size, 'member')} are attacked"
    if len(set(batch.positions)) < size:
        yield "a sample is there twice"
    if not _within(batch.positions, spec.dataset.size - 1):
        yield f"a position lies outside the {counted(spec.dataset.size, 'sample')} of the dataset"
    if not _within(batch.ids, _MOST) or not _within(batch.labels, _MOST):
        yield "an id or a label is out of range"


def of_record(spec: EvaluationSpec, plan: Plan, record: JournalRecord) -> Iterator[str]:
    """Yield the problems of the record of a planned unit, by itself and with the plan."""
    if isinstance(record, CertificateRecord):
        yield from _of_follow_ups(spec, plan, record)
        timing = record.timing
    elif isinstance(record, ProbeRecord):
        yield from _of_probe(plan, record)
        yield from _of_follow_ups(spec, plan, record)
        timing = record.timing
    else:
        batches = plan.batches if record.batch is None else (plan.batches[record.batch],)
        yield from _of_unit(spec, record, batches)
        yield from _of_tensor(spec, record, batches)
        timing = record.timing
    yield from _of_timing(timing, record.seed)


def of_challenge(
    spec: EvaluationSpec,
    plan: Plan,
    challenge: ChallengeRecord,
    earlier: Sequence[ChallengeRecord] = (),
) -> Iterator[str]:
    """Yield the problems of a challenge: by itself, with the plan, and with earlier challenges."""
    names = {defense.name for defense in spec.defenses}
    if not challenge.by.strip():
        yield "it does not say who made it"
    if challenge.defense not in names:
        yield f"the run has no defense {_shown(challenge.defense)!r}"
    keys = [unit.key for unit in challenge.units]
    if len(set(keys)) < len(keys):
        yield "a batch is submitted twice to one defense"
    yield from of_sessions([challenge.session])
    for unit in challenge.units:
        yield from (
            f"{_shown(unit.key)}: {problem}"
            for problem in _of_outside(spec, plan, unit, challenge, names)
        )
    yield from _of_targets(spec, challenge, earlier)


def _of_targets(
    spec: EvaluationSpec, challenge: ChallengeRecord, earlier: Sequence[ChallengeRecord]
) -> Iterator[str]:
    """Yield where the images were not submitted as they have to be.

    Images for the static model also go to every defense. Without these submissions, a challenge
    would lower the static model alone, and so raise the difference of a defense.
    """
    images: dict[int | None, TensorRef | None] = {}
    for unit in challenge.units:
        if images.setdefault(unit.batch, unit.tensor) != unit.tensor:
            yield f"{_shown(unit.key)}: the defenses got different images of batch {unit.batch}"
    targets = targets_of(spec, challenge.defense)
    for name in dict.fromkeys(unit.defense for unit in challenge.units):
        if name not in targets:
            yield f"images made for {challenge.defense} were submitted to {_shown(name)}"
    for name in targets:
        batches = {unit.batch for unit in challenge.units if unit.defense == name}
        missing = sorted(batch for batch in images.keys() - batches if batch is not None)
        covered = any(_sums(other, name) == _sums(challenge) for other in earlier)
        if missing and (batches or not covered):
            yield (
                f"images made for {challenge.defense} have to be submitted to "
                f"{', '.join(targets)}: batch {missing[0]} was not submitted to {_shown(name)}"
            )


def _sums(challenge: ChallengeRecord, defense: str | None = None) -> dict[int | None, str]:
    """Return the SHA-256 of the images by batch: of one defense, or of all."""
    return {
        unit.batch: unit.tensor.sha256
        for unit in challenge.units
        if unit.tensor is not None and defense in (None, unit.defense)
    }


def _of_outside(
    spec: EvaluationSpec,
    plan: Plan,
    unit: UnitRecord,
    challenge: ChallengeRecord,
    names: Collection[str],
) -> Iterator[str]:
    """Yield the problems of a unit of a challenge."""
    if unit.kind != "challenge" or unit.attack != challenge.short or unit.defense not in names:
        yield "it is not a unit of this challenge"
        return
    if unit.batch is None or unit.batch >= len(plan.batches):
        yield "there is no such batch"
        return
    batches = (plan.batches[unit.batch],)
    yield from _of_unit(spec, unit, batches)
    yield from _of_tensor(spec, unit, batches)
    yield from _of_timing(unit.timing, unit.seed)
    if unit.tensor is None:
        yield "it has no tensor"


def _of_timing(timing: UnitTiming, seed: int) -> Iterator[str]:
    seconds = (timing.total, timing.attack, timing.serve, timing.static or 0.0)
    if not all(value <= _FAR for value in seconds) or seed > _MOST:
        yield "a time or the seed is out of range"


def _of_unit(spec: EvaluationSpec, record: UnitRecord, batches: Sequence[Batch]) -> Iterator[str]:
    size = sum(batch.size for batch in batches)
    attacked = sum(batch.attacked for batch in batches)
    if len(record.served) != size:
        yield f"{counted(len(record.served), 'prediction')} for {counted(size, 'member')}"
    if not _within([prediction for prediction in record.served if prediction is not None], _MOST):
        yield "a predicted class is out of range"
    yield from _of_other_answers(record, size)
    yield from _of_attack(spec, record, attacked)
    sources = record.sources
    if (sources is not None) != (record.kind == "assembled"):
        yield "there are sources where nothing was assembled, or none where something was"
    if sources is not None:
        highest = len(candidates(spec, record.defense, record.attack)) - 1
        if len(sources) != attacked or not _within(sources, highest):
            yield (
                f"{counted(len(sources), 'source')}, up to {max(sources, default=0)}, for "
                f"{counted(attacked, 'member')}"
            )
    yield from (f"trace: {problem}" for problem in _of_trace(record.trace, attacked))


def _of_other_answers(record: UnitRecord, size: int) -> Iterator[str]:
    """Yield the problems of the answers to a batch other than the first one."""
    answers = (*record.views.values(), *record.draws)
    for answer in answers:
        if len(answer) != size:
            predictions, members = counted(len(answer), "prediction"), counted(size, "member")
            yield f"a view or draw has {predictions} for {members}"
    if not _within((each for answer in answers for each in answer if each is not None), _MOST):
        yield "a class in a view or draw is out of range"
    if any(distance <= DISTANCE for distance in record.apart.values()):
        yield "answers lie apart by no more than rounding"
    if len(record.draws) == 1:
        yield "there is one draw, which cannot both choose and score"


def _of_attack(spec: EvaluationSpec, record: UnitRecord, attacked: int) -> Iterator[str]:
    """Yield the problems of what an attack reports about itself."""
    if (record.claimed is not None) != (record.kind == "attack"):
        yield "there is a claim where nothing attacked, or none where something did"
    if record.kind != "attack":
        yield from _of_no_attack(record)
    elif spec.schedule == "by-attack" and None in (record.gradients, record.zero_gradients):
        yield "it does not say for which members the attack had a gradient"
    yield from _of_carried(record, attacked)
    if record.claimed is not None and len(record.claimed) != attacked:
        yield f"{counted(len(record.claimed), 'claim')} for {counted(attacked, 'attacked member')}"
    yield from _of_gradients(record, attacked)
    if not _within((record.claimed_after or {}).values(), attacked):
        yield "more members fell after a part of the attack than were attacked"
    if record.used is not None and not _is_share(spec, record, attacked):
        yield f"{len(record.used)} shares of eps, up to {_shown(max(record.used, default=0))}"
    if record.history is not None:
        yield from (f"history: {problem}" for problem in _of_history(record.history, attacked))
    if abs(record.loss or 0.0) > _FAR:
        yield "the loss is out of range"
    if max(record.queries, record.backwards, record.non_finite, record.planned or 0) > _MOST:
        yield "queries, backwards or non_finite is out of range"


def _of_no_attack(record: UnitRecord) -> Iterator[str]:
    """Yield what a unit says about an attack, although it only submitted images.

    `--reattack` repeats attacks alone, so nothing could check it.
    """
    fields = UnitRecord.model_fields
    allowed = ("used",) if record.kind == "challenge" else ()
    said = [
        name
        for name in _OF_ATTACKS
        if name not in allowed and getattr(record, name) != fields[name].default
    ]
    if said:
        yield f"nothing attacked, but there is {', '.join(said)}"


def _of_carried(record: UnitRecord, attacked: int) -> Iterator[str]:
    if record.carried is None:
        return
    if len(record.carried) != attacked:
        yield f"{counted(len(record.carried), 'carried image')} for {counted(attacked, 'member')}"


def _of_gradients(record: UnitRecord, attacked: int) -> Iterator[str]:
    for gradients in (record.gradients, record.zero_gradients):
        if gradients is None:
            continue
        if len(gradients) != attacked:
            yield (
                f"{counted(len(gradients), 'count')} of gradients for "
                f"{counted(attacked, 'attacked member')}"
            )
        if not _within(gradients, _MOST):
            yield "a count of gradients is out of range"


def _of_history(history: AttackHistory, attacked: int) -> Iterator[str]:
    series = (history.gradients, history.broken, history.loss, history.norm)
    if len({len(values) for values in series}) > 1 or not 0 < len(history.gradients) <= _POINTS:
        yield f"{[len(values) for values in series]} values a point, or more than {_POINTS} points"
    if any(a >= b for a, b in pairwise(history.gradients)):
        yield "gradients do not rise from point to point"
    if any(a > b for a, b in pairwise(history.broken)):
        yield "members that were broken are no longer"
    sizes = (history.late, history.rising, history.silent, history.untransferred)
    if not _within((*history.broken, *sizes), attacked):
        yield f"more than {counted(attacked, 'attacked member')}"
    if not _within(history.gradients, _MOST):
        yield "gradients are out of range"
    if not all(abs(value) <= _FAR for value in (*history.loss, *history.norm)):
        yield "a value is out of range"


def _is_share(spec: EvaluationSpec, record: UnitRecord, attacked: int) -> bool:
    threat = ThreatModel(spec.threat.norm, spec.threat.eps, spec.threat.bounds)
    rounding = _ROUNDING
    if record.tensor is not None and threat.eps:
        pixels = max(math.prod(record.tensor.shape[1:]), 1)  # an edited shape may be negative
        rounding = max(rounding, threat.tolerance(pixels) / threat.eps)
    used = record.used or ()
    return len(used) == attacked and all(share <= 1 + rounding for share in used)


def _of_trace(trace: Trace, attacked: int) -> Iterator[str]:
    if trace.rows > attacked or sum(trace.status.values()) > attacked:
        yield f"rows or statuses of more than {counted(attacked, 'attacked member')}"
    steps = trace.sigma_by_step or ()
    for values in (trace.entropy or (), trace.sigma or (), *steps):
        if not all(abs(value) <= _FAR for value in values):
            yield "a value is out of range"
            return
    if len({len(step) for step in steps}) > 1:
        yield "sigma has another length at some steps"


def _of_tensor(spec: EvaluationSpec, record: UnitRecord, batches: Sequence[Batch]) -> Iterator[str]:
    ref = record.tensor
    if ref is None:
        return
    if record.kind not in ("attack", "transfer", "challenge"):
        yield f"a {record.kind} unit has a tensor"
        return
    owner = STATIC if record.kind == "transfer" else record.defense
    if record.kind == "challenge":
        expected = challenge_file(record.attack or "", record.batch or 0)
    else:
        expected = tensor_file(spec, owner, record.attack, record.batch)
    if ref.file != expected:
        yield f"its tensor is {ref.file}, expected {expected}"
    if not _is_images(ref, sum(batch.attacked for batch in batches)):
        yield f"the shape of its tensor is {_shown(ref.shape)}"


def _is_images(ref: TensorRef, rows: int) -> bool:
    if len(ref.shape) != 4 or ref.shape[0] != rows or min(ref.shape) < 1:
        return False
    _, channels, height, width = ref.shape
    return channels * height * width <= _LARGEST_IMAGE


def _of_probe(plan: Plan, record: ProbeRecord) -> Iterator[str]:
    size = plan.batches[0].size
    comparisons = (record.repeated, record.again, record.alone, record.strangers, record.permuted)
    if not all(_is_comparison(entry, size) for entry in comparisons if entry is not None):
        yield "an answer changed for more members than were asked"
    if size > 1 and (record.alone is None or record.strangers is None):
        yield "no members were asked without the rest of their batch, or with other members"
    if size >= _TURNED and record.permuted is None:
        yield "no members were asked in another order"
    if not (0 < record.rows <= size and record.probabilities <= record.rows):
        yield f"{_shown(record.probabilities)} of {_shown(record.rows)} rows are probabilities"
    if not (record.gradient_rows <= size and (record.zero_gradients or 0) <= record.gradient_rows):
        n_zero, n_rows = record.zero_gradients, record.gradient_rows
        yield f"{_shown(n_zero)} of {_shown(n_rows)} gradients are zero"
    if record.gradient_check is not None and record.gradient_check.members > size:
        yield "the gradient certificate is over more members than the batch has"


def _of_gradient(gradient: GradientRecord, size: int) -> Iterator[str]:
    """Yield the problems of a gradient check of a batch of this size."""
    if gradient.missing is None and not gradient.points:
        yield "the gradient certificate has no points, and does not say why"
    if gradient.missing is None and gradient.threshold is None:
        yield "the gradient certificate has no upper limit of errors"
    for point in gradient.points:
        if not 0 < point.members == len(point.errors) <= size:
            yield (
                f"the gradient certificate has {counted(len(point.errors), 'error')} for "
                f"{_shown(point.members)} of {counted(size, 'member')}"
            )
        if point.coarse is not None and len(point.coarse) != point.members:
            yield (
                f"the gradient certificate has {counted(len(point.coarse), 'error')} over large "
                f"steps for {counted(point.members, 'member')}"
            )


def _of_follow_ups(
    spec: EvaluationSpec, plan: Plan, record: ProbeRecord | CertificateRecord
) -> Iterator[str]:
    size, full = plan.batches[0].size, spec.settings.diagnostics == "full"
    if record.more_iterations is not None and not full:
        yield "attacks with more iterations are recorded, but the settings do not ask for them"
    asked = full and (
        isinstance(record, CertificateRecord)
        or (spec.schedule == "by-batch" and None not in (record.calls, record.zero_gradients))
    )
    if asked and record.more_iterations is None:
        yield "no attacks with more iterations are recorded, but the settings ask for them"
    if isinstance(record, ProbeRecord) and spec.schedule == "by-attack":
        found = (record.gradient, record.huge_eps, record.more_iterations)
        if any(each is not None for each in found):
            yield "the checks of the certificate are recorded with the probe"
    if record.gradient is not None:
        yield from _of_gradient(record.gradient, size)
    further = None if record.gradient is None else record.gradient.further
    follow_ups = (record.huge_eps, further, *(record.more_iterations or ()))
    if not all(_is_follow_up(entry, size) for entry in follow_ups if entry is not None):
        yield "a follow-up left more members right than there were"


def _is_comparison(comparison: Comparison, size: int) -> bool:
    return 0 < comparison.members <= size and comparison.changed <= comparison.members


def _is_follow_up(follow_up: FollowUp, size: int) -> bool:
    return (
        0 < follow_up.total <= size
        and max(follow_up.correct, follow_up.before or 0) <= follow_up.total
    )


def _within(values: Iterable[int], largest: int) -> bool:
    """Return whether all values are from 0 to `largest`."""
    return all(0 <= value <= largest for value in values)


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
