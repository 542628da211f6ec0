"""Signs in the records that an attack did little or nothing.

They prove nothing. An attack that returns natural images, by mistake or on purpose, raises them.
But so may an attack that finds nothing. `dent verify --reattack` finds out which it was.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from dent.attacks.adaptive import is_unavailable
from dent.attacks.autoattack.parts import PARTS, SETS
from dent.evaluation.records.naming import is_as_named
from dent.evaluation.records.schema import UnitRecord
from dent.evaluation.records.spec import AttackSpec, DefenseSpec
from dent.evaluation.results.result import Diagnostic
from dent.evaluation.results.scoring import Scores

MOVED: Final = 0.01
"""Share of eps. An attack that moved no image this far counts as having moved nothing."""
GAINED: Final = 1e-3
"""Nats. An attack that raised the mean loss by less than this counts as having gained nothing."""
MANY: Final = 8
"""Number of members that must remain correct before an attack without effect is suspicious."""
SPARED: Final = 0.5
"""Share of the planned queries. An attack that left out more than this ended early, if members
remained correct."""
_NO_ATTACK: Final = "No attack ran on the defense itself, or the records do not tell."
_ALL_OR_NOTHING: Final = (*PARTS, *SETS, "rays")
"""Attacks that return the natural image of a member that they did not break."""


def effort_diagnostics(
    defense: DefenseSpec, scores: Scores, specs: Sequence[AttackSpec]
) -> tuple[Diagnostic, ...]:
    """Return the diagnostics of the effort of attacks on one defense, always in the same order.

    Older records lack the fields that they are read from, and have none. Members that an
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
        return Diagnostic.not_run(name, _NO_ATTACK)
    return Diagnostic.judge(
        name,
        float(len(unmoved)),
        0,
        f"{', '.join(unmoved)} moved no image: either no member was broken and the natural images "
        "were returned, or nothing was attacked. To find out: dent verify --reattack.",
        f"Every attack moved images, or left fewer than {MANY} members correct.",
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
        return Diagnostic.not_run(title, _NO_ATTACK)
    largest = {
        attack: max(gain or 0.0 for gain in by_batch) for attack, by_batch in known_gains.items()
    }
    fruitless = [
        attack
        for attack, gain in largest.items()
        if gain < GAINED and broken[attack] <= 0 and _many_stand(attacks[attack])
    ]
    return Diagnostic.judge(
        title,
        float(len(fruitless)),
        0,
        f"{', '.join(fruitless)} raised the loss on no batch and broke no member. The defense "
        "predicts its images like the natural ones.",
        f"Every attack broke a member, raised the loss, or left fewer than {MANY} members correct.",
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
        return Diagnostic.not_run(name, _NO_ATTACK)
    worst = max(shares.values())
    short = [attack for attack, share in shares.items() if share > SPARED]
    return Diagnostic.judge(
        name,
        max(worst, 0.0),
        SPARED,
        f"{', '.join(short)} used less than half of its planned queries, although members were "
        "still correct: they ended early, or are not the attacks that their names say.",
        "The attacks used their planned queries while members were correct.",
    )


def _not_as_named(defense: DefenseSpec) -> Diagnostic:
    return Diagnostic.judge(
        "not as named",
        float(not is_as_named(defense)),
        0,
        "The defense has the name of a known configuration, but other settings. See the spec "
        "before you compare it.",
        "The name of the defense fits its settings.",
    )
