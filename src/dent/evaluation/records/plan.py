"""The samples of each batch, and the order of all units. Both are fixed before a run starts.

Nothing here draws from a random generator of torch or NumPy, so a plan is the same everywhere.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, Literal

from dent.errors import ConfigError
from dent.evaluation.records.schema import TENSORS, unit_key
from dent.evaluation.records.spec import STATIC, DefenseSpec, EvaluationSpec, Settings
from dent.storage.canonical import Record
from dent.support.plural import agreeing, counted

if TYPE_CHECKING:
    from dent.data.dataset import ImageDataset

Kind = Literal["probe", "natural", "attack", "transfer", "assembled", "certificate", "challenge"]
APART: Final = ("probe", "certificate")
"""The kinds of units that submit no batch for a score."""
_CHUNK = 256


class Batch(Record):
    """One batch, whose members never change.

    Attacks may change the first `attacked` members. The others are clean members.
    """

    index: int
    positions: tuple[int, ...]
    """Positions in the dataset."""
    ids: tuple[int, ...]
    """Ids in the full split. A sample keeps its id in every subset."""
    labels: tuple[int, ...]
    attacked: int

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.positions)

    @property
    def attacked_ids(self) -> tuple[int, ...]:
        """The ids of the members that attacks may change."""
        return self.ids[: self.attacked]


class Plan(Record):
    """All batches of a run."""

    schema_version: Literal[1] = 1
    batches: tuple[Batch, ...]

    @property
    def attacked(self) -> int:
        """Number of attacked samples, over all batches."""
        return sum(batch.attacked for batch in self.batches)

    @property
    def uneven(self) -> bool:
        """Whether the batches have different sizes."""
        return len({batch.size for batch in self.batches}) > 1


@dataclass(frozen=True)
class Unit:
    """The smallest recorded piece of work: one line of the journal.

    Attributes:
        kind: `probe` tests a defense on the first batch. `natural` submits the natural batch.
            `attack` attacks the defense and submits the result. `transfer` submits the result of
            an attack on the static model. `assembled` submits one batch in which each member is
            the image that first broke it, or else its image from the strongest submission.
            `certificate`, in runs by attack, makes the checks that only a claim of a gain needs.
            `challenge` submits images from outside, and is never in a plan.
        defense: Name of the defense.
        attack: Name of the attack; None for `probe`, `natural`, `certificate` and, in runs by
            batch, `assembled`. In runs by attack, `assembled` has the name of the last attack on
            the defense whose images it uses; None if it uses only those of the static model.
        batch: Index of the batch; None for all batches at once.
    """

    kind: Kind
    defense: str
    attack: str | None
    batch: int | None

    @property
    def key(self) -> str:
        """A unique name of the unit in its run."""
        return unit_key(self.kind, self.batch, self.defense, self.attack)


def make_plan(settings: Settings, dataset: "ImageDataset") -> Plan:
    """Divide the samples into batches.

    Raises:
        ConfigError: The dataset is empty, lacks an id of the settings, or is too small for the
            clean members of `mix`.
    """
    size = len(dataset)
    if size == 0:
        raise ConfigError(f"the dataset {dataset.name!r} is empty: there is nothing to evaluate")
    positions = _chosen(settings, dataset)
    per_batch = attacked_per_batch(settings)
    clean = settings.batch_size - per_batch
    if clean > size - min(per_batch, len(positions)):
        raise ConfigError(
            f"mix={settings.mix} with batch_size={settings.batch_size} needs {clean} natural "
            f"images beside {per_batch} attacked ones, but {dataset.name!r} has {size} images: "
            "take a smaller batch or a larger dataset"
        )
    labels = dict(zip(positions, _labels(dataset, positions), strict=True))
    ordered = _ordered(positions, labels, settings)
    members = []
    for start in range(0, len(ordered), per_batch):
        attacked = ordered[start : start + per_batch]
        natural = _clean_members(attacked, size, clean, seed_of(settings.seed, "company", start))
        members.append((attacked, natural))
    absent = sorted({position for _, natural in members for position in natural} - labels.keys())
    labels |= dict(zip(absent, _labels(dataset, absent), strict=True))
    return Plan(
        batches=tuple(
            Batch(
                index=index,
                positions=(*attacked, *natural),
                ids=tuple(int(dataset.sample_ids[position]) for position in (*attacked, *natural)),
                labels=tuple(labels[position] for position in (*attacked, *natural)),
                attacked=len(attacked),
            )
            for index, (attacked, natural) in enumerate(members)
        )
    )


def attacked_per_batch(settings: Settings) -> int:
    """Return the number of attacked members of every batch but the last, which may have fewer."""
    if settings.mix is None:
        return settings.batch_size
    return max(1, round(settings.mix * settings.batch_size))


Group = tuple[Unit, ...]
"""Units that run in one process, in this order."""


def units(spec: EvaluationSpec, plan: Plan) -> Iterator[Unit]:
    """Yield all units of a run in the order in which they run."""
    for groups_of_round in rounds(spec, plan):
        for group in groups_of_round:
            yield from group


_PARTS: Final = 8
"""Number of rounds at most into which an attack on the defenses is split."""
_FIRST_ROUNDS: Final = 3
"""Number of rounds after which a run by attack may first stop."""


def before_decision(spec: EvaluationSpec, plan: Plan) -> tuple[Unit, ...]:
    """Return the units after which a run by attack may first stop; none for a run by batch."""
    if spec.schedule == "by-batch":
        return ()
    first = islice(rounds(spec, plan), _FIRST_ROUNDS)
    return tuple(chain.from_iterable(chain.from_iterable(first)))


def rounds(
    spec: EvaluationSpec, plan: Plan, *, in_parts: bool = True
) -> Iterator[tuple[Group, ...]]:
    """Yield the rounds of a run. A round has independent groups, and builds on earlier rounds.

    A run by batch is a single round. A run by attack has these rounds:

    1. the probes;
    2. the natural batches of the static model, and the attacks on it;
    3. for each defense, the natural batches and the transfers from the first attack on the static
       model, which decide most runs;
    4. for each other attack on the static model, the transfers from it;
    5. for each attack on the defenses, the attack;
    6. attacks with the published protocol, if there are any;
    7. the certificates.

    From the third round on, a run may stop after each round. So 4 and 5 have up to 8 rounds for
    each attack, with a part of the batches each.

    Args:
        spec: The specification.
        plan: Its batches.
        in_parts: Whether to split an attack into rounds. Without it, many workers can share all
            batches of an attack.
    """
    if spec.schedule == "by-batch":
        yield tuple(groups(spec, plan))
        return
    yield tuple((unit,) for unit in _probes(spec))
    yield tuple(tuple(_on_static(spec, batch.index)) for batch in plan.batches)
    others = _others(spec)
    stoppable = False
    for part in _by_attack(spec):
        for batches in _parts(plan.batches) if stoppable and in_parts else (plan.batches,):
            yield tuple(
                group
                for batch in batches
                for defense in others
                if (group := tuple(part(defense, batch.index)))
            )
        stoppable = True  # once every batch has a submission after its natural one
    published = tuple(_published(spec))
    if published:
        yield published
    yield _certificates(spec)


def _parts(batches: Sequence[Batch]) -> Iterator[Sequence[Batch]]:
    size = -(-len(batches) // _PARTS)
    for start in range(0, len(batches), size):
        yield batches[start : start + size]


def groups(spec: EvaluationSpec, plan: Plan) -> Iterator[Group]:
    """Yield the units of a run in independent groups, in order.

    A group is a probe, a certificate, or all other units of a batch. With the published protocol,
    a group is an attack with the transfers of its images. Each group can run in another process,
    on another machine.
    """
    for unit in _probes(spec):
        yield (unit,)
    for batch in plan.batches:
        if spec.schedule == "by-batch":
            yield tuple(_of_batch(spec, batch.index))
        else:
            others = _others(spec)
            parts = [part(each, batch.index) for part in _by_attack(spec) for each in others]
            yield tuple(chain(_on_static(spec, batch.index), *parts))
    yield from _published(spec)
    if spec.schedule == "by-attack":
        yield from _certificates(spec)


def _others(spec: EvaluationSpec) -> list[DefenseSpec]:
    """Return the defenses other than the static model."""
    return [defense for defense in spec.defenses if defense.name != STATIC]


def _probes(spec: EvaluationSpec) -> Iterator[Unit]:
    for defense in spec.defenses:
        yield Unit("probe", defense.name, None, 0)


def _certificates(spec: EvaluationSpec) -> tuple[Group, ...]:
    return tuple((Unit("certificate", defense.name, None, 0),) for defense in spec.defenses)


def _of_batch(spec: EvaluationSpec, batch: int) -> Iterator[Unit]:
    """Yield all units of a batch, so that an interrupted run has every attack on its batches."""
    for defense in spec.defenses:
        yield Unit("natural", defense.name, None, batch)
        yield from _attacks(spec, defense.name, _frozen(spec), batch)
        if defense.name != STATIC and len(candidates(spec, defense.name)) > 1:
            yield Unit("assembled", defense.name, None, batch)


def _published(spec: EvaluationSpec) -> Iterator[Group]:
    published = [attack.name for attack in spec.attacks if attack.protocol == "published"]
    by_attack: dict[tuple[str, str | None], list[Unit]] = {}
    for defense in spec.defenses:
        for unit in _attacks(spec, defense.name, published, None):
            source = STATIC if unit.kind == "transfer" else unit.defense
            by_attack.setdefault((source, unit.attack), []).append(unit)
    yield from map(tuple, by_attack.values())


def _on_static(spec: EvaluationSpec, batch: int) -> Iterator[Unit]:
    yield Unit("natural", STATIC, None, batch)
    for attack in _distinct(spec):
        yield Unit("attack", STATIC, attack, batch)


_Part = Callable[[DefenseSpec, int], Iterator[Unit]]
"""A function from a defense and a batch index to their units in one round."""


def _by_attack(spec: EvaluationSpec) -> Iterator[_Part]:
    yield partial(_natural_and_first_transfer, spec)
    for attack in _transfers(spec)[1:]:
        yield partial(_transferred, spec, attack)
    for attack in _frozen(spec):
        yield partial(_attacked, spec, attack)


def _natural_and_first_transfer(
    spec: EvaluationSpec, defense: DefenseSpec, batch: int
) -> Iterator[Unit]:
    yield Unit("natural", defense.name, None, batch)
    for attack in _transfers(spec)[:1]:
        yield Unit("transfer", defense.name, attack, batch)


def _transferred(
    spec: EvaluationSpec, attack: str, defense: DefenseSpec, batch: int
) -> Iterator[Unit]:
    yield Unit("transfer", defense.name, attack, batch)
    if defense.batch_dependent and attack == _transfers(spec)[-1]:
        yield Unit("assembled", defense.name, None, batch)


def _attacked(
    spec: EvaluationSpec, attack: str, defense: DefenseSpec, batch: int
) -> Iterator[Unit]:
    yield Unit("attack", defense.name, attack, batch)
    last = attack == _frozen(spec)[-1]
    if (defense.batch_dependent or last) and len(candidates(spec, defense.name, attack)) > 1:
        yield Unit("assembled", defense.name, attack, batch)


def _frozen(spec: EvaluationSpec) -> list[str]:
    return [attack.name for attack in spec.attacks if attack.protocol == "frozen"]


def _transfers(spec: EvaluationSpec) -> list[str]:
    """Return the attacks on the static model whose images are submitted to the defenses."""
    return _distinct(spec) if spec.settings.transfer else []


def _distinct(spec: EvaluationSpec) -> list[str]:
    """Return the attacks that run on the static model, except published ones."""
    return [name for name in _frozen(spec) if name not in spec.same_on_static]


def candidates(
    spec: EvaluationSpec, defense: str, after: str | None = None
) -> tuple[tuple[Kind, str], ...]:
    """Return the (kind, attack) of the units that a batch is assembled from, in order.

    Args:
        spec: The specification.
        defense: Name of the defense.
        after: In a run by attack, the last attack on the defense to include; None for transfers
            only. A run by batch ignores it and includes all attacks.
    """
    if spec.schedule == "by-batch":
        attack_units = tuple(_attacks(spec, defense, _frozen(spec), 0))
        return tuple((unit.kind, unit.attack) for unit in attack_units if unit.attack is not None)
    transfers = _transfers(spec)
    attacks = _frozen(spec)
    own = attacks[: attacks.index(after) + 1] if after is not None else []
    return tuple(
        [("transfer", attack) for attack in transfers] + [("attack", attack) for attack in own]
    )


def tensor_file(spec: EvaluationSpec, defense: str, attack: str | None, batch: int | None) -> str:
    """Return the file in a run folder for the adversarial images of an attack on a defense."""
    defenses = [entry.name for entry in spec.defenses]
    attacks = [entry.name for entry in spec.attacks]
    prefix = "all" if batch is None else f"{batch:06d}"
    indices = f"{defenses.index(defense):02d}-{attacks.index(attack or ''):02d}"
    return f"{TENSORS}/{prefix}-{indices}.safetensors"


def targets_of(spec: EvaluationSpec, target: str) -> list[str]:
    """Return the defenses to submit the images of a challenge to.

    Images for the static model go to all defenses, if the run transfers attacks.
    """
    if target != STATIC or not spec.settings.transfer:
        return [target]
    return [entry.name for entry in spec.defenses]


def challenge_file(challenge: str, batch: int) -> str:
    """Return the file in a run folder for the images of a challenge for one batch.

    Args:
        challenge: `ChallengeRecord.short`.
        batch: Index of the batch.
    """
    return f"{TENSORS}/challenge-{challenge}-{batch:06d}.safetensors"


def seed_of(seed: int, *parts: object) -> int:
    """Derive a seed in 0..2**63-1 from the seed of a run and the purpose.

    The purpose never includes the defense. So every defense gets the same random draws, and equal
    defenses get equal results.
    """
    text = "|".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _attacks(
    spec: EvaluationSpec, defense: str, attacks: Sequence[str], batch: int | None
) -> Iterator[Unit]:
    for attack in attacks:
        yield Unit("attack", defense, attack, batch)
    if defense != STATIC and spec.settings.transfer and spec.has_static:
        for attack in attacks:
            yield Unit("transfer", defense, attack, batch)


def _chosen(settings: Settings, dataset: "ImageDataset") -> list[int]:
    """Return the positions of the samples to attack, in the order of the dataset."""
    size = len(dataset)
    if settings.ids is None:
        return list(range(min(settings.n or size, size)))
    position_of = {int(dataset.sample_ids[position]): position for position in range(size)}
    missing = [id_ for id_ in settings.ids if id_ not in position_of]
    if missing:
        raise ConfigError(
            f"{counted(len(missing), 'id')} of {len(settings.ids)} given ones "
            f"{agreeing(len(missing), 'are')} not in "
            f"{dataset.name!r} ({dataset.split}), such as {missing[0]}: its "
            f"{counted(size, 'image')} have ids from {min(position_of)} to {max(position_of)}"
        )
    return sorted(position_of[id_] for id_ in settings.ids)


def _ordered(chosen: list[int], labels: dict[int, int], settings: Settings) -> list[int]:
    if settings.order == "shuffled":
        return _shuffled(chosen, seed_of(settings.seed, "order"))
    if settings.order == "by-class":
        return sorted(chosen, key=lambda position: (labels[position], position))
    return chosen


def _clean_members(attacked: Sequence[int], size: int, count: int, seed: int) -> list[int]:
    draw, used, members = random.Random(seed).random, set(attacked), list[int]()  # noqa: S311
    while len(members) < count:
        position = int(draw() * size)
        if position not in used:
            used.add(position)
            members.append(position)
    return members


def _shuffled(items: list[int], seed: int) -> list[int]:
    """Shuffle with `random()`, the only method with the same sequence in all Python versions."""
    draw, shuffled = random.Random(seed).random, list(items)  # noqa: S311 (no secret)
    for index in range(len(shuffled) - 1):
        swapped = index + int(draw() * (len(shuffled) - index))
        shuffled[index], shuffled[swapped] = shuffled[swapped], shuffled[index]
    return shuffled


def _labels(dataset: "ImageDataset", positions: Sequence[int]) -> list[int]:
    labels: list[int] = []
    for start in range(0, len(positions), _CHUNK):
        labels += dataset.labels_of(positions[start : start + _CHUNK])
    return labels
