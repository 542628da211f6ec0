"""Make the adversarial images of a unit: attack, transfer, or assemble them from other units."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dent.attacks import AttackResult, Defense
from dent.attacks.adaptive import NOT_AVAILABLE
from dent.attacks.adaptive.among import among
from dent.attacks.history import History
from dent.attacks.querier import NoGradientError, OnPass
from dent.evaluation.attack_kinds import has_exact_attack
from dent.evaluation.engine.carry import carried
from dent.evaluation.engine.context import RunContext, batches_of, unit_seed
from dent.evaluation.records.plan import Batch, Unit, candidates, seed_of
from dent.evaluation.records.schema import AttackHistory, UnitRecord
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.scoring import Piece, piece_of
from dent.evaluation.submission.fresh import fresh
from dent.evaluation.submission.stream import serve_seed


def adversarial_of(
    run: RunContext, unit: Unit, within: OnPass | None = None
) -> tuple[Tensor | None, dict[str, Any], float]:
    """Return the attacked members to submit, the record fields about them, and attack seconds.

    Args:
        run: The run.
        unit: The unit. For a natural one, there are no such members: the first value is None.
        within: Called after every pass of an attack.
    """
    if unit.kind == "natural":
        return None, {}, 0.0
    unit_batches = batches_of(run.plan, unit)
    if unit.kind == "transfer":
        source = run.recorded(Unit("attack", STATIC, unit.attack, unit.batch))
        return run.store.adversarial(source), {"tensor": source.tensor}, 0.0
    if unit.kind == "assembled":
        adversarial, sources = assembled(run, unit, unit_batches[0])
        return adversarial, {"sources": sources}, 0.0
    seed = unit_seed(run.spec, unit)
    attack = partial(
        run.subject.attack(unit.attack or ""),
        threat=run.threat,
        seed=seed,
        progress=within,
        shared_seed=seed_of(run.spec.settings.seed, "static", unit.batch),
    )
    defense = as_attacked(run, unit.defense, unit_batches[0], seed, run.surrogates)
    if len(unit_batches) == 1:
        return _attack_batch(run, unit, unit_batches[0], defense, attack)
    loaded = [run.load(batch) for batch in unit_batches]
    x, y = (torch.cat(tensors) for tensors in zip(*loaded, strict=True))
    result = attack(defense, x, y)
    return result.adversarial, _attack_fields(result), result.seconds


def as_attacked(
    run: RunContext, defense: str, batch: Batch, seed: int, surrogates: Mapping[str, nn.Module]
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


def _attack_batch(
    run: RunContext,
    unit: Unit,
    batch: Batch,
    defense: Defense,
    attack: Callable[..., AttackResult],
) -> tuple[Tensor, dict[str, Any], float]:
    """Attack the members of a batch that were not fooled yet. Fooled ones keep their image."""
    x, y = run.load(batch)
    images, attacked = x[: batch.attacked], y[: batch.attacked]
    broke = carried(run.spec, batch, unit, run.store.done)
    standing = torch.tensor([record is None for record in broke], device=x.device)
    if not bool(standing.any()):
        result = _not_attacked(images[:0])
    else:
        target = among(defense, x, y, batch.attacked)
        result = _attack_if_available(run, attack, target, images[standing], attacked[standing])
    if bool(standing.all()):
        return result.adversarial, _attack_fields(result), result.seconds
    adversarial = carried_images(run, broke, images)
    adversarial[standing] = result.adversarial.to(images)
    described = _attack_fields(_widened(result, standing))
    described["carried"] = tuple((~standing).tolist())
    return adversarial, described, result.seconds


def carried_images(run: RunContext, broke: Sequence[UnitRecord | None], natural: Tensor) -> Tensor:
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
            broken = run.store.adversarial(run.tensor_owner(record)).to(images)
            images[: len(broke)][rows] = broken[rows]
    return images


def _attack_if_available(
    run: RunContext, attack: Callable[..., AttackResult], target: Defense, x: Tensor, y: Tensor
) -> AttackResult:
    """Attack; if the defense lacks the gradient that the attack needs, return natural images."""
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
    left_out = int((~standing).sum())
    return replace(history, broken=tuple(count + left_out for count in history.broken))


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


def _attack_fields(result: AttackResult) -> dict[str, Any]:
    """Return the fields of `UnitRecord` about what an attack did and claims."""
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


def assembled(run: RunContext, unit: Unit, batch: Batch) -> tuple[Tensor, tuple[int, ...]]:
    """Return the images of an assembled batch, and for each the index of the candidate it is from.

    Each member gets the image that first broke it, or else that of the strongest submission.
    """
    records = [
        run.recorded(Unit(kind, unit.defense, attack, unit.batch))
        for kind, attack in candidates(run.spec, unit.defense, unit.attack)
    ]
    pieces = [piece_of(batch, record) for record in records]
    strongest = min(range(len(records)), key=lambda index: sum(pieces[index].chooses))
    sources = tuple(_worst_for(member, pieces, strongest) for member in range(batch.attacked))
    tensors = {
        index: run.store.adversarial(run.tensor_owner(records[index])) for index in set(sources)
    }
    rows = [tensors[index][member] for member, index in enumerate(sources)]
    return torch.stack(rows), sources


def _worst_for(member: int, pieces: Sequence[Piece], strongest: int) -> int:
    """Return the first submission in which a member was correct least often, or else the strongest.

    The strongest counts if the member was always correct in all submissions.
    """
    worst = min(range(len(pieces)), key=lambda index: pieces[index].chooses[member])
    return worst if pieces[worst].chooses[member] < 1 else strongest
