"""Make, check and submit the images of one challenge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from dent.attacks import Attack
from dent.attacks.adaptive.among import among
from dent.errors import ConfigError
from dent.evaluation.challenges.images import (
    Given,
    by_batch,
    given_by,
    read_images,
    refuse_outside,
)
from dent.evaluation.challenges.watch import Watch
from dent.evaluation.engine.adversarial import as_attacked
from dent.evaluation.engine.context import RunContext, unit_seed
from dent.evaluation.engine.execute import record_of, submit_unit
from dent.evaluation.engine.progress import OnProgress
from dent.evaluation.records.image_digest import digest_of
from dent.evaluation.records.plan import Batch, Unit, challenge_file, targets_of
from dent.evaluation.records.provenance import new_session, now
from dent.evaluation.records.schema import ChallengeRecord, Session, UnitRecord, short_digest
from dent.evaluation.records.tensor_files import packed_as
from dent.evaluation.submission.measures import share_of_eps
from dent.evaluation.submission.submission import clock
from dent.storage.errors import RecordError
from dent.support.devices import device_of


@dataclass(frozen=True)
class Maker:
    """The maker of the images, and what else is recorded.

    Attributes:
        by: Name of the maker.
        url: A link to more information.
        note: A note for the record.
    """

    by: str
    url: str | None
    note: str | None


class Challenger:
    """A helper that makes, checks and submits the images of one challenge.

    Args:
        run: The run, without its folder.
        images: A file of images, or the attack that makes them.
        target: Name of the defense that the images are made for.
        progress: Called before, during and after every batch.
    """

    def __init__(
        self, run: RunContext, images: Path | Attack, target: str, progress: OnProgress | None
    ) -> None:
        self._run, self._source, self._target = run, images, target
        self._passes: tuple[int, ...] | None = None
        attacked: tuple[int, ...] = ()
        if isinstance(images, Attack):
            refuse_published(images)
            self._source = images = images.sized(run.spec.settings.batch_size)
            self._passes = self._planned(images)
            attacked = self._passes or (1,) * len(run.plan.batches)
        submissions = len(run.plan.batches) * len(targets_of(run.spec, target))
        self._watch = Watch(progress, attacked, submissions)

    def challenge(
        self, maker: Maker, known: Sequence[ChallengeRecord]
    ) -> tuple[ChallengeRecord, dict[str, bytes]]:
        """Return the record of the challenge, and its files of images for the run folder, by name.

        If these images are already known, return the record of the known challenge and no files.

        Args:
            maker: The maker of the images.
            known: The challenges that the run already has.

        Raises:
            InputError: The images have another shape or count, or lie outside the threat model.
            RecordError: A known challenge has the digest of these images, but holds others.
        """
        run, target = self._run, self._target
        given = self._given()
        images = by_batch(given, run.plan)
        refuse_outside(images, run.plan, run.threat, self._natural, given)
        digest = digest_of(images, run.plan)
        file_digests = _file_digests(images)
        there = _covered(known, {digest, given.of_file}, file_digests)
        targets = [name for name in targets_of(run.spec, target) if name not in there]
        if not targets:
            return there[target], {}
        _refuse_taken(known, digest, file_digests)
        session = new_session(device_of(run.subject.model))
        submitted, files = self._submitted(targets, images, short_digest(digest))
        record = ChallengeRecord(
            by=maker.by,
            url=maker.url,
            note=maker.note,
            date=now(),
            digest=digest,
            defense=target,
            attack=self._source.name if isinstance(self._source, Attack) else None,
            units=submitted,
            session=_ended(session, submitted),
        )
        return record, files

    def _natural(self, batch: Batch) -> Tensor:
        return self._run.load(batch)[0]

    def _given(self) -> Given:
        """Return the images, read from a file or made by the attack."""
        plan = self._run.plan
        if isinstance(self._source, Attack):
            return given_by(self._attacked(self._source), plan)
        shape = tuple(self._natural(plan.batches[0]).shape[1:])
        return read_images(Path(self._source), plan, shape)

    def _planned(self, attack: Attack) -> tuple[int, ...] | None:
        """Return the maximum number of passes for each batch; None if they cannot be counted."""
        run = self._run
        classes, norm = len(run.spec.dataset.classes), run.threat.norm
        try:
            return tuple(
                sum(attack.passes(classes, norm, batch.attacked)) for batch in run.plan.batches
            )
        except ConfigError:  # an evaluation needs the count, a challenge does not
            return None

    def _attacked(self, attack: Attack) -> dict[int, Tensor]:
        run, found = self._run, {}
        surrogates = run.subject.surrogates() if attack.registered == "surrogates" else {}
        for batch in run.plan.batches:
            unit = Unit("attack", self._target, attack.name, batch.index)
            self._watch.within(unit, 0, 1)
            x, y = run.load(batch)
            seed = unit_seed(run.spec, unit)
            whole = as_attacked(run, self._target, batch, seed, surrogates)
            members = among(whole, x, y, batch.attacked)
            natural, labels = x[: batch.attacked], y[: batch.attacked]
            watched = None if self._passes is None else partial(self._watch.within, unit)
            result = attack(
                members, natural, labels, threat=run.threat, seed=seed, progress=watched
            )
            run.guard.check(self._target)
            found[batch.index] = result.adversarial
            self._watch.next()
        return found

    def _submitted(
        self, targets: Sequence[str], images: Mapping[int, Tensor], name: str
    ) -> tuple[tuple[UnitRecord, ...], dict[str, bytes]]:
        records: list[UnitRecord] = []
        files: dict[str, bytes] = {}
        self._watch.submits(len(images) * len(targets))
        for index, rows in images.items():
            file = challenge_file(name, index)
            ref, files[file] = packed_as(file, rows)
            for target in targets:
                unit = Unit("challenge", target, name, index)
                self._watch.within(unit, 0, 1)
                record = self._submit(unit, rows)
                records.append(record.model_copy(update={"tensor": ref}))
                self._watch.next()
        return tuple(records), files

    def _submit(self, unit: Unit, rows: Tensor) -> UnitRecord:
        run = self._run
        device = device_of(run.subject.model)
        start = clock(device)
        answers = submit_unit(run, unit, rows)
        run.guard.check(unit.defense)
        batch = run.plan.batches[unit.batch or 0]
        used = share_of_eps(run.threat, rows, self._natural(batch)[: batch.attacked])
        return record_of(run, unit, answers, start=start, used=used)


def refuse_published(attack: Attack) -> None:
    """Check that an attack does not take the batches apart.

    Raises:
        ConfigError: The attack follows the published protocol, which does.
    """
    if getattr(attack, "protocol", "") == "published":
        raise ConfigError(
            f"{attack.name}: a published attack takes the batches apart; expected one that "
            "attacks whole batches (protocol=frozen)"
        )


def _file_digests(images: Mapping[int, Tensor]) -> dict[int, str]:
    """Return the SHA-256 of the file of each batch of images."""
    return {
        index: packed_as(challenge_file("", index), rows)[0].sha256
        for index, rows in images.items()
    }


def _covered(
    challenges: Sequence[ChallengeRecord], digests: set[str], file_digests: Mapping[int, str]
) -> dict[str, ChallengeRecord]:
    """Return the challenge that submitted these images, by defense they were submitted to.

    A digest alone is no proof, because the author of a run can write any. So the digests of
    the files are compared as well.
    """
    there: dict[str, ChallengeRecord] = {}
    for entry in challenges:
        if entry.digest not in digests:
            continue
        for defense in {unit.defense: None for unit in entry.units}:
            units = [unit for unit in entry.units if unit.defense == defense]
            if {unit.batch: _file_digest(unit) for unit in units} == file_digests:
                there[defense] = entry
    return there


def _refuse_taken(
    challenges: Sequence[ChallengeRecord], digest: str, file_digests: Mapping[int, str]
) -> None:
    """Check that no other images are recorded in the place of these.

    Raises:
        RecordError: Some are. Their digest was edited.
    """
    short = short_digest(digest)
    for entry in challenges:
        images = {unit.batch: _file_digest(unit) for unit in entry.units}
        if entry.short == short and images != file_digests:
            raise RecordError(
                f"the challenge by {entry.by} of {entry.date} has the digest of these images, "
                f"{short}, but has others: its record was edited. Nothing was written. Delete "
                "its line in challenges.jsonl, and submit these images again"
            )


def _file_digest(unit: UnitRecord) -> str | None:
    return None if unit.tensor is None else unit.tensor.sha256


def _ended(session: Session, submitted: Sequence[UnitRecord]) -> Session:
    seconds = sum(record.timing.total for record in submitted)
    timing = {"total": seconds, "serve": sum(record.timing.serve for record in submitted)}
    return session.model_copy(
        update={
            "ended": now(),
            "outcome": "complete",
            "units": len(submitted),
            "timing": timing,
        }
    )
