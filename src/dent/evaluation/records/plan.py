"""Which samples are in which batch, and what runs in which order: fixed before anything runs.

Nothing here draws from a random generator of torch or numpy, so a plan is the same everywhere.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dent.errors import ConfigError
from dent.evaluation.records.schema import TENSORS
from dent.evaluation.records.spec import STATIC, EvaluationSpec, Settings
from dent.storage.canonical import Record

if TYPE_CHECKING:
    from dent.data.dataset import ImageDataset

Kind = Literal["probe", "natural", "attack", "transfer", "assembled"]
_CHUNK = 256


class Batch(Record):
    """One batch, whose members never change.

    The first `attacked` members may be perturbed; the others are clean members.
    """

    index: int
    positions: tuple[int, ...]
    """In the dataset."""
    ids: tuple[int, ...]
    """In the full split; a sample keeps its id in every subset."""
    labels: tuple[int, ...]
    attacked: int

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.positions)


class Plan(Record):
    """All batches of a run."""

    schema_version: Literal[1] = 1
    batches: tuple[Batch, ...]

    @property
    def attacked(self) -> int:
        """How many samples are attacked, over all batches."""
        return sum(batch.attacked for batch in self.batches)

    @property
    def uneven(self) -> bool:
        """Whether the batches are of different sizes."""
        return len({batch.size for batch in self.batches}) > 1


@dataclass(frozen=True)
class Unit:
    """The smallest recorded piece of work: one line of the journal.

    Attributes:
        kind: `probe` looks at a defense on the first batch; `natural` serves a batch as it is;
            `attack` attacks the defense and serves what came of it; `transfer` serves what came of
            attacking the static model; `assembled` serves one batch in which each member is what
            broke it before.
        defense: By name.
        attack: By name; None for `probe`, `natural` and `assembled`.
        batch: Index of the batch; None where it is all batches at once.
    """

    kind: Kind
    defense: str
    attack: str | None
    batch: int | None

    @property
    def key(self) -> str:
        """A name that no other unit of the run has."""
        return "/".join((self.kind, str(self.batch), self.defense, str(self.attack)))


def make_plan(settings: Settings, dataset: "ImageDataset") -> Plan:
    """Divide the samples into batches.

    Raises:
        ConfigError: The dataset is empty, or too small for the clean members of `mix`.
    """
    size = len(dataset)
    if size == 0:
        raise ConfigError(f"the dataset {dataset.name!r} is empty: there is nothing to evaluate")
    positions = list(range(min(settings.n or size, size)))
    per_batch = settings.batch_size
    if settings.mix is not None:
        per_batch = max(1, round(settings.mix * settings.batch_size))
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


def units(spec: EvaluationSpec, plan: Plan) -> Iterator[Unit]:
    """Yield all units of a run in the order in which they run.

    Batch by batch, so that a run cut short has every defense and attack on the batches it did; the
    attacks of the published protocol, which take all batches at once, come last.
    """
    frozen = [attack.name for attack in spec.attacks if attack.protocol == "frozen"]
    published = [attack.name for attack in spec.attacks if attack.protocol == "published"]
    for defense in spec.defenses:
        yield Unit("probe", defense.name, None, 0)
    for batch in plan.batches:
        for defense in spec.defenses:
            yield Unit("natural", defense.name, None, batch.index)
            yield from _attacks(spec, defense.name, frozen, batch.index)
            if defense.name != STATIC and len(candidates(spec, defense.name)) > 1:
                yield Unit("assembled", defense.name, None, batch.index)
    if published:
        for defense in spec.defenses:
            yield from _attacks(spec, defense.name, published, None)


def groups(spec: EvaluationSpec, plan: Plan) -> Iterator[tuple[Unit, ...]]:
    """Yield the units of a run in independent groups, in order.

    A group is a probe, all other units of a batch, or, of the published protocol, an attack with
    the transfers of what it found. Each can run in another process, on another machine.
    """
    batch: list[Unit] = []
    by_attack: dict[tuple[str, str | None], list[Unit]] = {}
    for unit in units(spec, plan):
        if unit.kind == "probe":
            yield (unit,)
            continue
        if batch and unit.batch != batch[-1].batch:
            yield tuple(batch)
            batch = []
        if unit.batch is not None:
            batch.append(unit)
        else:
            source = STATIC if unit.kind == "transfer" else unit.defense
            by_attack.setdefault((source, unit.attack), []).append(unit)
    if batch:
        yield tuple(batch)
    yield from map(tuple, by_attack.values())


def candidates(spec: EvaluationSpec, defense: str) -> tuple[tuple[Kind, str], ...]:
    """The (kind, attack) of every attack that runs batch by batch against a defense."""
    attack_units = _attacks(
        spec, defense, [attack.name for attack in spec.attacks if attack.protocol == "frozen"], 0
    )
    return tuple((unit.kind, unit.attack) for unit in attack_units if unit.attack is not None)


def tensor_file(spec: EvaluationSpec, defense: str, attack: str | None, batch: int | None) -> str:
    """The file in a run folder with the adversarial images of an attack on a defense."""
    defenses = [entry.name for entry in spec.defenses]
    attacks = [entry.name for entry in spec.attacks]
    prefix = "all" if batch is None else f"{batch:06d}"
    indices = f"{defenses.index(defense):02d}-{attacks.index(attack or ''):02d}"
    return f"{TENSORS}/{prefix}-{indices}.safetensors"


def seed_of(seed: int, *parts: object) -> int:
    """Derive a seed in 0..2**63-1 from a run's seed and what it is for.

    The purpose never includes the defense: every defense gets the same random draws, so that
    two equal defenses have equal results.
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
    """Shuffle with `random()`, the only method whose sequence Python guarantees across versions."""
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
