"""Leave fooled members out of later attacks: they keep the image that broke them.

This happens only in runs by attack, and only for a defense whose predictions do not depend on the
batch, on chance or on earlier queries. For such a defense, an image that broke a member breaks it
again on submission.

An attack leaves out members that are wrong without an attack, and members that attacks of its own
kind broke. The kinds are: by the defense's own gradient (white-box), by queries only, and from
other models (transfer). Members that other kinds broke are attacked, because the gates of the
verdict compare the kinds. There are exceptions:

- Attacks of the kind `other` leave out all members broken before. Their gradient may be neither, or
  they also query (AutoAttack's sets). The other attacks do attack the members that these broke.
- On the static model, attacks by queries leave out all members broken before. Attacks from other
  models attack even members that are wrong without an attack: a defense may predict them correctly.
- `adaptive-transfer` leaves out no member, because it is computed once, for the whole batch.
- A custom attack leaves out no member, because its kind is unknown.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from dent.evaluation.attack_kinds import kind_of_attack
from dent.evaluation.records.plan import Batch, Unit, candidates
from dent.evaluation.records.probe_answers import depends_on_batch, randomized, stateful
from dent.evaluation.records.schema import ProbeRecord, UnitRecord
from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.evaluation.results.scoring import piece_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dent.evaluation.records.schema import JournalRecord

FEWEST = 2
"""Smallest number of members to attack, because some defenses fail on a single image."""


def carried(
    spec: EvaluationSpec, batch: Batch, unit: Unit, done: "Mapping[str, JournalRecord]"
) -> tuple[UnitRecord | None, ...]:
    """Return for each attacked member the record of the unit that broke it.

    None for a member that the attack does not leave out.

    Args:
        spec: The specification.
        batch: The batch of the unit.
        unit: The unit of the attack.
        done: The records of the batch and the probe of the defense, by key.
    """
    nobody = (None,) * batch.attacked
    if spec.schedule == "by-batch" or batch.attacked < batch.size or _is_shared(spec, unit):
        return nobody
    if not _independent(spec, unit.defense, done):
        return nobody
    broke: list[UnitRecord | None] = list(nobody)
    for record in _earlier(spec, unit, done):
        for member, right in enumerate(piece_of(batch, record).attacked):
            if broke[member] is None and right < 1:
                broke[member] = record
    standing = sum(record is None for record in broke)
    if 0 < standing < min(FEWEST, batch.attacked):
        broke[next(member for member, record in enumerate(broke) if record is not None)] = None
    return tuple(broke)


def _is_shared(spec: EvaluationSpec, unit: Unit) -> bool:
    return any(
        entry.name == unit.attack and entry.attack == "adaptive-transfer" for entry in spec.attacks
    )


def _independent(spec: EvaluationSpec, name: str, done: "Mapping[str, JournalRecord]") -> bool:
    defense = next(entry for entry in spec.defenses if entry.name == name)
    probe = done.get(Unit("probe", name, None, 0).key)
    return (
        not defense.batch_dependent
        and isinstance(probe, ProbeRecord)
        and probe.uncopied is None
        and not (depends_on_batch(probe) or randomized(probe) or stateful(probe))
    )


def _earlier(
    spec: EvaluationSpec, unit: Unit, done: "Mapping[str, JournalRecord]"
) -> Iterator[UnitRecord]:
    """Yield the records whose broken members the unit leaves out, in the order of the run."""
    kinds = {entry.name: kind_of_attack(entry) for entry in spec.attacks}
    mine = kinds[unit.attack or ""]
    for earlier in _before(spec, unit):
        record = done.get(earlier.key)
        kind = "transfer" if earlier.kind == "transfer" else kinds.get(earlier.attack or "")
        if earlier.kind == "natural":
            alike = unit.defense != STATIC or mine != "transfer"
        else:
            alike = mine in ("other", kind) or (unit.defense, mine) == (STATIC, "black-box")
        if isinstance(record, UnitRecord) and mine is not None and alike:
            yield record


def _before(spec: EvaluationSpec, unit: Unit) -> Iterable[Unit]:
    yield Unit("natural", unit.defense, None, unit.batch)
    if unit.defense == STATIC:
        names = [entry.name for entry in spec.attacks]
        for name in names[: names.index(unit.attack or "")]:
            yield Unit("attack", STATIC, name, unit.batch)
    else:
        for kind, attack in candidates(spec, unit.defense, unit.attack)[:-1]:
            yield Unit(kind, unit.defense, attack, unit.batch)
