"""Challenge a run: submit adversarial images from outside, and record the answers."""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from dent.attacks import Attack
from dent.errors import ConfigError
from dent.evaluation.challenges.challenger import Challenger, Maker, refuse_published
from dent.evaluation.engine.context import RunContext, open_run
from dent.evaluation.engine.cost import DefenseCost, estimate_attack
from dent.evaluation.engine.progress import OnProgress
from dent.evaluation.records.folder import RESULT, RunFolder
from dent.evaluation.records.plan import make_plan
from dent.evaluation.records.record_file import read_record
from dent.evaluation.records.schema import ChallengeRecord
from dent.evaluation.records.spec import STATIC, EvaluationSpec, differences
from dent.evaluation.records.store import Memory
from dent.evaluation.results.recorded_run import RecordedRun, load_run
from dent.evaluation.results.result import ChallengeSummary, EvaluationResult
from dent.evaluation.results.summary import summarize_folder
from dent.evaluation.subject import Prepared, Subject, describe
from dent.storage.disk import is_there
from dent.storage.errors import RecordError, SpecMismatchError
from dent.support.plural import first_few
from dent.support.printable import encodable


@dataclass(frozen=True)
class Challenged:
    """The outcome of a challenge.

    Attributes:
        challenge: The record of the challenge.
        new: Whether the challenge is new. The same images are recorded only once.
        result: The result of the run, with all its challenges.
    """

    challenge: ChallengeRecord
    new: bool
    result: EvaluationResult

    @property
    def summaries(self) -> dict[str, ChallengeSummary]:
        """The summary of the challenge for each defense that its images were submitted to."""
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
    progress: OnProgress | None = None,
    dry_run: bool = False,
) -> Challenged:
    """Submit adversarial images from outside to a defense of a run, and record the answers.

    The images are checked against the threat model in float64. They are submitted as whole batches,
    in the batches and under the seeds of the run. They count in the worst case and in the
    difference to the static model, under the name of their maker. The identity of the run does not
    change. Images made for the static model are submitted to every other defense as well, if the
    run transfers attacks.

    After an error, nothing is recorded and the run is unchanged, unless only `result.json` could
    not be written. Then the same call again writes it.

    Args:
        path: The run folder. The run need not be complete.
        subject: The same objects that the run evaluated.
        images: A file of images (see docs/evaluation/challenge.md), or an attack, which runs
            against the defense and makes the images.
        by: The maker of the images, or of the attack.
        defense: Name of the defense that the images were made for. If None, it is the only defense
            other than the static model.
        url: A link to more information.
        note: A note for the record.
        progress: Called before, during and after every batch.
        dry_run: Whether to check and submit the images but write nothing.

    Raises:
        ConfigError: There is no such defense, a text is empty, too long or not valid Unicode, or
            the attack takes the batches apart.
        InputError: The images have another shape or count, or lie outside the threat model.
        SpecMismatchError: The subject is not the one of the run.
        LockedError: Another process is writing to the run.
        RecordError: The run or the file cannot be read or written.

    Example:
        >>> found = challenge(Path("runs/first"), subject, Path("broken.npy"), by="Ada Lovelace")
        >>> found.summaries["dent+"].lowered
    """
    path = Path(path)
    recorded, run, target = _opened(path, subject, defense)
    maker = _maker(by, url, note)
    challenger = Challenger(run, images, target, progress)
    if dry_run:
        record, files = challenger.challenge(maker, recorded.challenges)
        if files:
            recorded = replace(recorded, challenges=(*recorded.challenges, record))
        return Challenged(record, bool(files), recorded.result)
    with closing(RunFolder(path, run.spec, run.plan)) as folder:
        record, files = challenger.challenge(maker, folder.challenges)
        if files:
            folder.add(record, files)
        return Challenged(record, bool(files), _result(folder, recorded, record.digest))


def estimate_challenge(
    path: Path, subject: Subject, attack: Attack, *, defense: str | None = None
) -> DefenseCost:
    """Return the maximum cost to challenge a run with an attack, from timing a few images.

    Args:
        path: The run folder.
        subject: The same objects that the run evaluated.
        attack: The attack.
        defense: Name of the defense to attack. If None, it is the only defense other than the
            static model.

    Raises:
        ConfigError: There is no such defense, the attack takes the batches apart, or its passes
            cannot be counted.
        SpecMismatchError: The subject is not the one of the run.
        RecordError: The run cannot be read.
    """
    _, run, target = _opened(Path(path), subject, defense)
    refuse_published(attack)
    return estimate_attack(run.prepared, target, attack)


def _opened(
    path: Path, subject: Subject, defense: str | None
) -> tuple[RecordedRun, RunContext, str]:
    """Return the run as recorded and as ready to run, and the name of the challenged defense."""
    recorded = load_run(path)
    spec = recorded.run.spec
    target = _target(spec, defense)
    subject = subject.sized(spec.settings)
    _refuse_another(recorded, subject)
    return recorded, open_run(Prepared(subject, spec, recorded.plan), Memory()), target


def _target(spec: EvaluationSpec, defense: str | None) -> str:
    """Return the name of the defense that the images were made for."""
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


def _maker(by: str, url: str | None, note: str | None) -> Maker:
    by = by.strip()
    if not by:
        raise ConfigError("a challenge needs the name of its maker")
    for what, text in (("name", by), ("link", url), ("note", note)):
        if text is not None and encodable(text) != text:
            raise ConfigError(f"the {what} of a challenge is not valid Unicode: {encodable(text)}")
        longest = 200 if what == "name" else 2000
        if text is not None and len(text) > longest:
            raise ConfigError(
                f"the {what} of a challenge has {len(text)} characters, and at most {longest} fit"
            )
    return Maker(by, url or None, note or None)


def _refuse_another(recorded: RecordedRun, subject: Subject) -> None:
    spec = recorded.run.spec
    described = describe(subject, spec.settings)
    mismatches = differences(spec.newest.to_json(), described.to_json())
    plan = make_plan(spec.settings, subject.dataset)
    mismatches += differences(recorded.plan.to_json(), plan.to_json())
    if mismatches:
        listed = "\n  ".join(first_few(mismatches, 10))
        raise SpecMismatchError(
            f"{recorded.path} evaluated something else than what is here; nothing was submitted. "
            f"They differ in\n  {listed}",
            mismatches,
        )


def _result(folder: RunFolder, recorded: RecordedRun, digest: str) -> EvaluationResult:
    """Return the result of the run. Write it unless the file already has this challenge."""
    result = summarize_folder(folder, recorded.plan)
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
