"""Tells: signs in the records that an attack did little or nothing.

A tell is no proof. An attack that returns natural images, by mistake or on purpose, raises tells,
but so may an attack that finds nothing. `dent verify --reattack` finds out which it was.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F

from dent.attacks.adaptive import is_unavailable
from dent.attacks.autoattack.parts import PARTS, SETS
from dent.evaluation.records.naming import is_as_named
from dent.evaluation.records.schema import UnitRecord
from dent.evaluation.records.spec import AttackSpec, DefenseSpec
from dent.evaluation.results.result import Diagnostic
from dent.evaluation.results.scoring import Scores
from dent.support.predictions import bounded, is_prediction

if TYPE_CHECKING:
    from torch import Tensor

    from dent.attacks import Attack
    from dent.evaluation.records.plan import Batch
    from dent.evaluation.submission.submission import Submission
    from dent.threat import ThreatModel

MOVED: Final = 0.01
"""Share of eps. An attack that moved no image this far counts as having moved nothing."""
GAINED: Final = 1e-3
"""Nats. An attack that raised the mean loss by less than this counts as having gained nothing."""
MANY: Final = 8
"""Number of members that must remain correct before an attack without effect is suspicious."""
SPARED: Final = 0.5
"""Share of the planned queries. An attack that left out more than this ended early, if members
remained correct."""
_ROUNDED: Final = 6
_FAR: Final = 1e12
"""Largest loss that is recorded, in nats: readers refuse larger ones."""
_ALL_OR_NOTHING: Final = (*PARTS, *SETS, "rays")
"""Attacks that return the natural image of a member that they did not break."""


def loss_of(answers: Sequence["Submission"], batches: Sequence["Batch"]) -> float | None:
    """Return the mean cross-entropy of the attacked members, in nats; None if none is finite."""
    rows: list[Tensor] = []
    for answer, batch in zip(answers, batches, strict=True):
        labels = torch.tensor(batch.labels[: batch.attacked])
        logits = answer.logits[: batch.attacked].cpu().double()
        if int(labels.max()) < logits.shape[1]:
            losses = F.cross_entropy(bounded(logits), labels, reduction="none")
            rows.append(losses[is_prediction(logits)])
    losses = torch.cat(rows) if rows else torch.empty(0)
    losses = losses[losses.isfinite()]
    return min(round(float(losses.mean()), _ROUNDED), _FAR) if len(losses) else None


def of_attack(
    attack: "Attack",
    threat: "ThreatModel",
    adversarial: "Tensor",
    natural: "Tensor",
    num_classes: int,
) -> dict[str, Any]:
    """Return the record fields `planned` and `used`: how far an attack was to go, and went.

    Args:
        attack: The attack.
        threat: The threat model.
        adversarial: The adversarial images (N, C, H, W).
        natural: The natural images that it started from, of the same shape.
        num_classes: The number of classes.
    """
    planned: int | None = attack.passes(num_classes, threat.norm, len(natural)).forwards
    if attack.registered == "surrogates":  # its queries depend on the number of models
        planned = None
    return {"planned": planned, "used": used_of(threat, adversarial, natural)}


def used_of(
    threat: "ThreatModel", adversarial: "Tensor", natural: "Tensor"
) -> tuple[float, ...] | None:
    """Return the size of each image's perturbation as a share of eps; None if eps is 0."""
    if threat.eps == 0:
        return None
    share = threat.distance(adversarial.cpu(), natural.cpu()) / threat.eps
    return tuple(round(distance, 4) for distance in share.tolist())


def of_defense(
    defense: DefenseSpec, scores: Scores, specs: Sequence[AttackSpec]
) -> tuple[Diagnostic, ...]:
    """Return the tells of one defense, raised or not, always in the same order.

    Older records lack the fields that tells are read from, and have no tells. Members that an
    attack left out (`carried`) keep the images of other attacks, and tell nothing about it.

    Args:
        defense: The defense.
        scores: The scores of its records.
        specs: The attacks of the run.
    """
    records = scores.records
    silent = {each.name for each in specs if each.attack in _ALL_OR_NOTHING}
    if all(unit.loss is None for units in records.values() for unit in units):
        return ()
    attacks = {
        name.partition("/")[2]: units
        for name, units in records.items()
        if name.startswith("attack/")
        and units
        and not any(is_unavailable(unit.notes) for unit in units)
    }
    broken = {attack: _broken(scores, f"attack/{attack}") for attack in attacks}
    return (
        _moved_nothing(attacks, silent),
        _gained_nothing(attacks, records.get("natural", ()), broken),
        _fewer_queries(attacks),
        _not_as_named(defense),
    )


def _broken(scores: Scores, name: str) -> float:
    """Return how many members that are correct without an attack an attack itself broke."""
    natural, pieces = scores.submissions.get("natural", {}), scores.submissions[name]
    carried = {record.batch: record.carried for record in scores.records[name]}
    return sum(
        max(before - after, 0.0)
        for index in natural.keys() & pieces.keys()
        for before, after, left_out in zip(
            natural[index].attacked,
            pieces[index].attacked,
            carried.get(index) or (False,) * len(pieces[index].attacked),
            strict=True,
        )
        if not left_out
    )


_Attacks = Mapping[str, Sequence[UnitRecord]]


def _moved_nothing(attacks: _Attacks, silent: Collection[str]) -> Diagnostic:
    """Return whether an attack moved none of the images that it attacked.

    The attacks in `silent` tell nothing if they left out the members that are easy to break: they
    return natural images if they break none of the others.
    """
    name = "attack moved nothing"
    distances = {
        attack: [share for unit in units for share in _own(unit)]
        for attack, units in attacks.items()
        if all(unit.used is not None for unit in units)
        and not (attack in silent and any(any(unit.carried or ()) for unit in units))
    }
    unmoved = [
        attack
        for attack, shares in distances.items()
        if shares and max(shares) < MOVED and _many_stand(attacks[attack])
    ]
    if not distances:
        return _not_run(name)
    return Diagnostic(
        name=name,
        state="raised" if unmoved else "passed",
        value=float(len(unmoved)),
        threshold=0,
        sentence=(
            f"{', '.join(unmoved)} moved no image: either no member was broken and the natural "
            "images were returned, or nothing was attacked. To find out: dent verify --reattack."
            if unmoved
            else f"Every attack moved images, or left fewer than {MANY} members correct."
        ),
    )


def _own(unit: UnitRecord) -> list[float]:
    """Return the sizes of the perturbations of the members that the attack did not leave out."""
    used = unit.used or ()
    carried = unit.carried or (False,) * len(used)
    return [share for share, left_out in zip(used, carried, strict=True) if not left_out]


def _gained_nothing(
    attacks: _Attacks, natural: Sequence[UnitRecord], broken: Mapping[str, float]
) -> Diagnostic:
    title = "attack gained nothing"
    gains = {attack: list(_gains(units, natural)) for attack, units in attacks.items()}
    known_gains = {
        attack: by_batch for attack, by_batch in gains.items() if None not in by_batch and by_batch
    }
    if not known_gains:
        return _not_run(title)
    largest = {
        attack: max(gain or 0.0 for gain in by_batch) for attack, by_batch in known_gains.items()
    }
    fruitless = [
        attack
        for attack, gain in largest.items()
        if gain < GAINED and broken[attack] <= 0 and _many_stand(attacks[attack])
    ]
    return Diagnostic(
        name=title,
        state="raised" if fruitless else "passed",
        value=float(len(fruitless)),
        threshold=0,
        sentence=(
            f"{', '.join(fruitless)} raised the loss on no batch and broke no member. The defense "
            "predicts its images like the natural ones."
            if fruitless
            else "Every attack broke a member, raised the loss, or left fewer than "
            f"{MANY} members correct."
        ),
    )


def _gains(units: Sequence[UnitRecord], natural: Sequence[UnitRecord]) -> Iterator[float | None]:
    """Yield the loss of each batch under attack minus its natural loss; None if unknown.

    Batches with members that the attack left out are skipped: their loss is also of other images.
    """
    natural_losses = {unit.batch: unit.loss for unit in natural}
    losses = [loss for loss in natural_losses.values() if loss is not None]
    mean = sum(losses) / len(losses) if losses and len(losses) == len(natural_losses) else None
    for unit in units:
        if any(unit.carried or ()):
            continue
        clean = mean if unit.batch is None else natural_losses.get(unit.batch)
        yield None if clean is None or unit.loss is None else unit.loss - clean


def _many_stand(units: Sequence[UnitRecord]) -> bool:
    """Return whether the attack claims to have left at least `MANY` members correct."""
    return sum(not fooled for unit in units for fooled in unit.claimed or ()) >= MANY


def _fewer_queries(attacks: _Attacks) -> Diagnostic:
    name = "fewer queries than planned"
    shares = {
        attack: max(1 - unit.queries / (unit.planned or 1) for unit in standing)
        for attack, units in attacks.items()
        if (standing := [unit for unit in units if unit.planned and not all(unit.claimed or ())])
    }
    if not shares:
        return _not_run(name)
    worst = max(shares.values())
    short = [attack for attack, share in shares.items() if share > SPARED]
    return Diagnostic(
        name=name,
        state="raised" if short else "passed",
        value=max(worst, 0.0),
        threshold=SPARED,
        sentence=(
            f"{', '.join(short)} used less than half of its planned queries, although members were "
            "still correct: they ended early, or are not the attacks that their names say."
            if short
            else "The attacks used their planned queries while members were correct."
        ),
    )


def _not_as_named(defense: DefenseSpec) -> Diagnostic:
    fits = is_as_named(defense)
    return Diagnostic(
        name="not as named",
        state="passed" if fits else "raised",
        value=float(not fits),
        threshold=0,
        sentence=(
            "The name of the defense fits its settings."
            if fits
            else "The defense has the name of a known configuration, but other settings. See the "
            "spec before you compare it."
        ),
    )


def _not_run(name: str) -> Diagnostic:
    why = "No attack ran on the defense itself, or the records do not tell."
    return Diagnostic(name=name, state="not-run", value=None, threshold=None, sentence=why)
