"""Tells: cheap signs, read from the records alone, that an attack did little or nothing.

None of them proves anything. An attack that was made to return natural images, by mistake or on
purpose, leaves all of them; whether it was is for `dent verify --reattack` to find.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F

from dent.attacks.adaptive import NOT_AVAILABLE
from dent.evaluation.records.naming import is_as_named
from dent.evaluation.records.schema import UnitRecord
from dent.evaluation.records.spec import DefenseSpec
from dent.evaluation.results.result import AttackSummary, Diagnostic

if TYPE_CHECKING:
    from torch import Tensor

    from dent.attacks import Attack
    from dent.evaluation.records.plan import Batch
    from dent.evaluation.submission.submission import Submission
    from dent.threat import ThreatModel

MOVED: Final = 0.01
"""Of eps: an attack whose furthest image lies nearer moved nothing."""
GAINED: Final = 1e-3
"""In nats: an attack that raised the mean loss by less gained nothing."""
MANY: Final = 8
"""Members that must stand before an attack that broke none of them is a sign of anything."""
SPARED: Final = 0.5
"""Of the queries planned: an attack that left out more, while members stood, gave up early."""
_ROUNDED: Final = 6


def loss_of(answers: Sequence["Submission"], batches: Sequence["Batch"]) -> float | None:
    """Mean cross-entropy of what was served to the attacked members, in nats.

    None where no answer was finite.
    """
    rows: list[Tensor] = []
    for answer, batch in zip(answers, batches, strict=True):
        labels = torch.tensor(batch.labels[: batch.attacked])
        logits = answer.logits[: batch.attacked].double().cpu()
        if int(labels.max()) < logits.shape[1]:
            rows.append(F.cross_entropy(logits, labels, reduction="none"))
    known = torch.cat(rows) if rows else torch.empty(0)
    known = known[known.isfinite()]
    return round(float(known.mean()), _ROUNDED) if len(known) else None


def of_attack(
    attack: "Attack", threat: "ThreatModel", found: "Tensor", natural: "Tensor", classes: int
) -> dict[str, Any]:
    """What a record says of how far an attack went, by the record's fields.

    Args:
        attack: It.
        threat: What it was allowed.
        found: What it found, (N, C, H, W).
        natural: What it was given, of the same shape.
        classes: How many there are.
    """
    planned = attack.passes(classes, threat.norm, len(natural)).forwards
    if threat.eps == 0:
        return {"planned": planned}
    share = threat.distance(found.cpu(), natural.cpu()) / threat.eps
    return {"planned": planned, "used": tuple(round(each, 4) for each in share.tolist())}


def of_defense(
    defense: DefenseSpec,
    records: Mapping[str, Sequence[UnitRecord]],
    natural: int,
    attacked: Sequence[AttackSummary],
) -> tuple[Diagnostic, ...]:
    """The tells of one defense, raised or not, in an order that is always the same.

    None of records from before they held what the tells are read from.

    Args:
        defense: It.
        records: By what was submitted (`natural`, `attack/NAME`, ...), the units.
        natural: Members answered correctly in their natural batches.
        attacked: What was served under each attack.
    """
    if all(unit.loss is None for units in records.values() for unit in units):
        return ()
    attacks = {
        name.partition("/")[2]: units
        for name, units in records.items()
        if name.startswith("attack/")
        and units
        and not any(note.startswith(NOT_AVAILABLE) for unit in units for note in unit.notes)
    }
    broke = {
        each.attack: natural - each.served.correct
        for each in attacked
        if each.kind == "attack" and each.attack is not None
    }
    return (
        _moved(attacks),
        _gained(attacks, records.get("natural", ()), broke),
        _asked(attacks),
        _named(defense),
    )


_Attacks = Mapping[str, Sequence[UnitRecord]]


def _moved(attacks: _Attacks) -> Diagnostic:
    name = "attack moved nothing"
    known = {
        attack: [share for unit in units for share in unit.used or ()]
        for attack, units in attacks.items()
        if all(unit.used is not None for unit in units)
    }
    still = [
        attack
        for attack, shares in known.items()
        if shares and max(shares) < MOVED and _many_stand(attacks[attack])
    ]
    if not known:
        return _not_run(name)
    return Diagnostic(
        name=name,
        state="raised" if still else "passed",
        value=float(len(still)),
        threshold=0,
        sentence=(
            f"No image was moved by {', '.join(still)}: either nobody fell to it and it gave the "
            "natural images back, or it did not attack. Have it run again: dent verify --reattack."
            if still
            else f"Every attack that left {MANY} members standing moved images."
        ),
    )


def _gained(
    attacks: _Attacks, natural: Sequence[UnitRecord], broke: Mapping[str, int]
) -> Diagnostic:
    title = "attack gained nothing"
    gains = {attack: list(_gains(units, natural)) for attack, units in attacks.items()}
    known = {attack: found for attack, found in gains.items() if None not in found and found}
    if not known:
        return _not_run(title)
    most = {attack: max(each or 0.0 for each in found) for attack, found in known.items()}
    none = [
        attack
        for attack, gain in most.items()
        if gain < GAINED and not broke.get(attack) and _many_stand(attacks[attack])
    ]
    return Diagnostic(
        name=title,
        state="raised" if none else "passed",
        value=float(len(none)),
        threshold=0,
        sentence=(
            f"On no batch did {', '.join(none)} raise the loss or break a member: what it found is "
            "answered as the natural images are."
            if none
            else f"Every attack that left {MANY} members standing broke one or raised the loss."
        ),
    )


def _gains(units: Sequence[UnitRecord], natural: Sequence[UnitRecord]) -> Iterator[float | None]:
    """Of each batch, the loss under an attack less that of the natural batch; None if unknown."""
    before = {unit.batch: unit.loss for unit in natural}
    known = [loss for loss in before.values() if loss is not None]
    whole = sum(known) / len(known) if known and len(known) == len(before) else None
    for unit in units:
        clean = whole if unit.batch is None else before.get(unit.batch)
        yield None if clean is None or unit.loss is None else unit.loss - clean


def _many_stand(units: Sequence[UnitRecord]) -> bool:
    """Whether there was much left to do, by the attack's own word."""
    return sum(not fell for unit in units for fell in unit.claimed or ()) >= MANY


def _asked(attacks: _Attacks) -> Diagnostic:
    name = "fewer queries than planned"
    shares = {
        attack: max(1 - unit.queries / (unit.planned or 1) for unit in standing)
        for attack, units in attacks.items()
        if (standing := [unit for unit in units if unit.planned and not all(unit.claimed or ())])
    }
    if not shares:
        return _not_run(name)
    worst = max(shares.values())
    few = [attack for attack, share in shares.items() if share > SPARED]
    return Diagnostic(
        name=name,
        state="raised" if few else "passed",
        value=max(worst, 0.0),
        threshold=SPARED,
        sentence=(
            f"Less than half of the queries planned for {', '.join(few)} were asked, while members "
            "stood: it ended early, or it is not the attack that its name says."
            if few
            else "Attacks went on while members stood."
        ),
    )


def _named(defense: DefenseSpec) -> Diagnostic:
    fits = is_as_named(defense)
    return Diagnostic(
        name="not as named",
        state="passed" if fits else "raised",
        value=float(not fits),
        threshold=0,
        sentence=(
            "The defense is called what it is."
            if fits
            else "The defense bears the name of a known configuration and has other settings: read "
            "them in the spec before you compare it."
        ),
    )


def _not_run(name: str) -> Diagnostic:
    why = "No attack ran on the defense itself, or its records do not say it."
    return Diagnostic(name=name, state="not-run", value=None, threshold=None, sentence=why)
