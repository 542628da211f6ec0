"""Challenge a run: submit adversarial images from outside to its defenses, and record what came."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dent.attacks import Attack
from dent.attacks.adaptive.among import among
from dent.errors import ConfigError
from dent.evaluation.challenges.images import Given, by_batch, given_by, read_images, refuse_outside
from dent.evaluation.engine.execute import (
    Batches,
    Run,
    as_attacked,
    open_run,
    record_of,
    submit_unit,
    unit_seed,
)
from dent.evaluation.records.folder import RESULT, Memory, RunFolder, packed_as, read_record
from dent.evaluation.records.plan import Batch, Unit, challenge_file, make_plan
from dent.evaluation.records.provenance import new_session, now
from dent.evaluation.records.schema import ChallengeRecord, Session, UnitRecord, short_digest
from dent.evaluation.records.spec import STATIC, EvaluationSpec, differences
from dent.evaluation.results.recorded_run import RecordedRun, load_run
from dent.evaluation.results.result import ChallengeSummary, EvaluationResult
from dent.evaluation.results.summary import summarize
from dent.evaluation.results.tells import used_of
from dent.evaluation.subject import Prepared, Subject, describe
from dent.evaluation.submission.submission import clock
from dent.storage.disk import is_there
from dent.storage.errors import RecordError, SpecMismatchError
from dent.support.devices import device_of

OnBatch = Callable[[int, int], None]
"""Called with (batches done, batches in all), attacks and submissions counted apart."""


@dataclass(frozen=True)
class Challenged:
    """What came of a challenge.

    Attributes:
        challenge: As it is recorded.
        new: Whether it was recorded now. The same images are recorded once.
        result: The result of the run, with all its challenges.
    """

    challenge: ChallengeRecord
    new: bool
    result: EvaluationResult

    @property
    def summaries(self) -> dict[str, ChallengeSummary]:
        """What it left, by defense that it was submitted to."""
        return {
            name: summary
            for name, defense in self.result.defenses.items()
            for summary in defense.challenges
            if summary.digest == self.challenge.digest
        }


def challenge(
    path: Path,
    subject: Subject,
    images: Path | Attack,
    *,
    by: str,
    defense: str | None = None,
    url: str | None = None,
    note: str | None = None,
    progress: OnBatch | None = None,
) -> Challenged:
    """Submit adversarial images from outside to a defense of a run, and record the answers.

    The images are checked against the threat model in float64, and submitted as whole batches in
    the order, layout and seeds of the run. They count in the worst case and in the difference to
    the static model, under the name of their maker. The identity of the run stays as it is.
    Images made for the static model are submitted to every other defense as well, if the run
    transfers attacks.

    Args:
        path: The run folder. The run need not be complete.
        subject: What was evaluated, as it would be evaluated again.
        images: A file (see docs/evaluation/challenge.md), or an attack, which runs against the
            defense and makes them.
        by: Who made the images, or the attack.
        defense: The defense that they were made for; the only one beside the static model if None.
        url: Where to read more.
        note: What else to record.
        progress: Called after every batch.

    Raises:
        ConfigError: There is no such defense, or a text is empty or too long.
        InputError: The images have another shape or count, or lie outside the threat model.
        SpecMismatchError: The subject is not that of the run.
        LockedError: Another process is writing to the run.
        RecordError: The run or the file cannot be read or written. Whatever is raised, nothing was
            recorded, and the run is as it was.

    Example:
        >>> found = challenge(Path("runs/first"), subject, Path("broken.npy"), by="Ada Lovelace")
        >>> found.summaries["dent+"].lowered
    """
    path = Path(path)
    recorded = load_run(path)
    spec, plan = recorded.run.spec, recorded.plan
    target = _target(spec, defense)
    by, url, note = _texts(by, url, note)
    subject = subject.sized(spec.settings)
    _refuse_another(recorded, subject)
    run = open_run(Prepared(subject, spec, plan), Memory())
    challenger = _Challenger(run, progress)
    with closing(RunFolder(path, spec, plan)) as folder:
        given = challenger.given(images, target)
        laid = by_batch(given, plan)
        refuse_outside(laid, plan, run.threat, challenger.natural)
        there = _covered(folder.challenges, given.digest)
        targets = [name for name in _targets(spec, target) if name not in there]
        if not targets:
            return Challenged(there[target], False, _result(folder, recorded, given.digest))
        session = new_session(device_of(subject.model))
        submitted, files = challenger.submit(targets, laid, short_digest(given.digest))
        record = ChallengeRecord(
            by=by,
            url=url,
            note=note,
            date=now(),
            digest=given.digest,
            defense=target,
            attack=images.name if isinstance(images, Attack) else None,
            units=submitted,
            session=_ended(session, submitted),
        )
        folder.add(record, files)
        return Challenged(record, True, _result(folder, recorded, given.digest))


class _Challenger:
    """Makes, checks and submits the images of one challenge."""

    def __init__(self, run: Run, progress: OnBatch | None) -> None:
        self._run, self._progress = run, progress
        self._batches = Batches(run)

    def natural(self, batch: Batch) -> Tensor:
        """The natural images of a batch."""
        return self._batches.load(batch)[0]

    def given(self, images: Path | Attack, target: str) -> Given:
        """The images, read from a file or made by an attack."""
        plan = self._run.plan
        if isinstance(images, Attack):
            return given_by(self._attack(images, target), plan)
        shape = tuple(self.natural(plan.batches[0]).shape[1:])
        return read_images(Path(images), plan, shape)

    def _attack(self, attack: Attack, target: str) -> dict[int, Tensor]:
        run, found = self._run, {}
        attack = attack.sized(run.spec.settings.batch_size)
        if getattr(attack, "protocol", "") == "published":
            raise ConfigError(
                f"{attack.name}: a published attack takes the batches apart; expected one that "
                "attacks whole batches (protocol=frozen)"
            )
        surrogates = run.subject.surrogates() if attack.registered == "surrogates" else {}
        for batch in run.plan.batches:
            x, y = self._batches.load(batch)
            seed = unit_seed(run.spec, Unit("attack", target, attack.name, batch.index))
            whole = as_attacked(run, target, batch, seed, surrogates)
            members = among(whole, x, y, batch.attacked)
            natural, labels = x[: batch.attacked], y[: batch.attacked]
            result = attack(members, natural, labels, threat=run.threat, seed=seed)
            run.guard.check(target)
            found[batch.index] = result.adversarial
            self._tell(len(found), len(run.plan.batches))
        return found

    def submit(
        self, targets: Sequence[str], images: Mapping[int, Tensor], name: str
    ) -> tuple[tuple[UnitRecord, ...], dict[str, bytes]]:
        """Submit images to defenses.

        Returns:
            The records, and the files of the run folder with the images.
        """
        records: list[UnitRecord] = []
        files: dict[str, bytes] = {}
        for index, rows in images.items():
            file = challenge_file(name, index)
            ref, files[file] = packed_as(file, rows)
            for target in targets:
                record = self._submit(Unit("challenge", target, name, index), rows)
                records.append(record.model_copy(update={"tensor": ref}))
                self._tell(len(records), len(images) * len(targets))
        return tuple(records), files

    def _submit(self, unit: Unit, rows: Tensor) -> UnitRecord:
        run = self._run
        device = device_of(run.subject.model)
        start = clock(device)
        answers = submit_unit(run, unit, rows, self._batches)
        run.guard.check(unit.defense)
        batch = run.plan.batches[unit.batch or 0]
        used = used_of(run.threat, rows, self.natural(batch)[: batch.attacked])
        return record_of(run, unit, answers, start=start, used=used)

    def _tell(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)


def _target(spec: EvaluationSpec, defense: str | None) -> str:
    """The defense that the images were made for."""
    names = [entry.name for entry in spec.defenses]
    if defense is None:
        others = [name for name in names if name != STATIC] or names
        if len(others) > 1:
            raise ConfigError(
                f"the run has several defenses: say which one the images were made for, one of "
                f"{', '.join(names)}"
            )
        return others[0]
    if defense not in names:
        raise ConfigError(f"the run has no defense {defense!r}: expected one of {', '.join(names)}")
    return defense


def _targets(spec: EvaluationSpec, target: str) -> list[str]:
    """The defenses that the images are submitted to: as in a run, those of static go to all."""
    if target != STATIC or not spec.settings.transfer:
        return [target]
    return [entry.name for entry in spec.defenses]


def _texts(by: str, url: str | None, note: str | None) -> tuple[str, str | None, str | None]:
    by = by.strip()
    if not by:
        raise ConfigError("a challenge needs the name of its maker")
    for what, text in (("name", by), ("link", url), ("note", note)):
        longest = 200 if what == "name" else 2000
        if text is not None and len(text) > longest:
            raise ConfigError(
                f"the {what} of a challenge has {len(text)} characters, and at most {longest} fit"
            )
    return by, url or None, note or None


def _refuse_another(recorded: RecordedRun, subject: Subject) -> None:
    spec = recorded.run.spec
    described = describe(subject, spec.settings)
    mismatches = differences(spec.newest.to_json(), described.to_json())
    plan = make_plan(spec.settings, subject.dataset)
    mismatches += differences(recorded.plan.to_json(), plan.to_json())
    if mismatches:
        listed = "\n  ".join(mismatches[:10])
        raise SpecMismatchError(
            f"{recorded.path} evaluated something else than what is here; nothing was submitted. "
            f"They differ in\n  {listed}",
            mismatches,
        )


def _covered(challenges: Sequence[ChallengeRecord], digest: str) -> dict[str, ChallengeRecord]:
    """By defense that these images were submitted to, the challenge that did it."""
    return {
        unit.defense: entry
        for entry in challenges
        if entry.digest == digest
        for unit in entry.units
    }


def _result(folder: RunFolder, recorded: RecordedRun, digest: str) -> EvaluationResult:
    """The result of the run, written unless the file has this challenge already."""
    run = folder.run
    result = summarize(
        run.spec, recorded.plan, folder.done, run.units, run.sessions, folder.challenges
    )
    if not _has(folder.path, digest):
        folder.write(RESULT, result)
    return result


def _has(path: Path, digest: str) -> bool:
    if not is_there(path / RESULT):
        return False
    try:
        written = read_record(path / RESULT, EvaluationResult)
    except RecordError:
        return False
    return any(
        entry.digest == digest for each in written.defenses.values() for entry in each.challenges
    )


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
