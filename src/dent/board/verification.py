"""Verify a row of the board: submit it, or check it as a maintainer does."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from dent.board import pack
from dent.board.board_row import BoardRow, VariantResult
from dent.board.listing import by_digest, read_board_row
from dent.board.pack import Packed
from dent.board.row_checks import checks_of
from dent.board.submission import (
    SUBMISSION,
    FileOnline,
    RowSubmission,
    read_plain,
    submission_of,
    write_submission,
)
from dent.board.tracks import HEADLINE, NOT_OF_THE_BOARD
from dent.board.trust import TrustEntry, add_trust
from dent.config import DentConfig
from dent.defenses import registry
from dent.errors import ConfigError
from dent.evaluation import Reattack, Verification, restore, verify
from dent.evaluation.records.schema import TENSORS
from dent.evaluation.restoration import restore_base
from dent.evaluation.verification.outcome import Check, outcome_of
from dent.evaluation.verification.replaced import functions, replaced
from dent.evaluation.verification.static_first import static_problems
from dent.evaluation.verification.verify import OnUnit
from dent.storage.canonical import Record
from dent.storage.disk import sha256_of
from dent.storage.errors import RecordError
from dent.support.plural import counted

_PACKED = ".tar.gz"


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify the runs of a row.

    Attributes:
        data_root: Folder of datasets.
        device: The device to compute on; without one, the GPU if there is one.
        records_only: Load no model and submit nothing.
        allow_code: Import and call the `module:factory` names that the runs record.
        progress: Called for every run. It yields what is called after every unit of this run.
    """

    data_root: Path | None = None
    device: str | None = None
    records_only: bool = False
    allow_code: bool = False
    progress: Callable[[], AbstractContextManager[OnUnit | None]] = nullcontext


@dataclass(frozen=True)
class DownloadedFiles:
    """Files that a submission names by URL and SHA-256, as the checker downloaded them.

    Attributes:
        images: The archive of adversarial images.
        lock: The lock file of the defense's environment.
        weights: All files of weights that the submission names.
    """

    images: Path | None = None
    lock: Path | None = None
    weights: tuple[Path, ...] = ()


_DEFAULTS: Final = VerifyOptions()
_NOTHING: Final = DownloadedFiles()


@dataclass(frozen=True)
class Submitted:
    """A row that is ready to be submitted.

    Attributes:
        row: The row, with its submission.
        submission: Its submission, which is also in its folder.
        packed: Its archives.
        notes: What else happened, in sentences for the user.
    """

    row: BoardRow
    submission: RowSubmission
    packed: Packed
    notes: tuple[str, ...] = ()


class RowCheck(Record):
    """The outcome of all checks of a row."""

    status: str
    """`verified`, `failed`, or `incomplete`: nothing is wrong, but not everything was checked."""
    says: str
    """The status in words, including which attacks were run again."""
    checks: tuple[Check, ...]
    """The checks of the row, of its headline run, and of its other runs, which come after the name
    of their run."""
    verification: Verification
    """Verification of the headline run."""


def conclude(checks: tuple[Check, ...], verifications: Mapping[str, Verification]) -> RowCheck:
    """Combine the checks of a row with the checks of its runs.

    Args:
        checks: Checks of the row.
        verifications: Verifications of all runs of the row, by the name of the variant.
    """
    headline = verifications[HEADLINE]
    others = (
        check.model_copy(update={"name": f"{variant}: {check.name}"})
        for variant, verification in verifications.items()
        if variant != HEADLINE
        for check in verification.checks
    )
    # The board makes its own rulings, so those of a result need not be compared.
    of_runs = (check for run in verifications.values() for check in run.checks)
    compared = (check for check in of_runs if not check.lacks_only_rulings)
    states = {check.state for check in (*checks, *compared)}
    checks = (*checks, *headline.checks, *others)
    status = "failed" if "failed" in states else "incomplete"
    if states == {"passed"}:
        status = "verified"
        headline = headline.model_copy(update={"status": status})
    says = headline.says if status == headline.status != "failed" else status
    return RowCheck(status=status, says=says, checks=checks, verification=headline)


def submit(
    folder: Path,
    file: Path | None,
    given: Mapping[str, str | None],
    out: Path | None,
    options: VerifyOptions,
) -> Submitted | RowCheck:
    """Verify a row, pack it and write its submission.

    Args:
        folder: The row.
        file: A JSON file with fields of the submission, such as that of the claim; by default the
            row's own, if it has one. `images` of other records are left out.
        given: Fields of the submission. They replace fields of the file.
        out: The archive; by default beside the folder.
        options: How to verify the row. Code is always allowed.

    Returns:
        The submission and its archives, or the failed check if something is wrong with the row.

    Raises:
        ConfigError: The headline run is not finished, a field is missing or wrong, or the factory
            does not make the defense again.
        RecordError: There is no row, or it is damaged.
    """
    row = read_board_row(folder)
    archive = out or folder.with_name(f"{folder.name}{_PACKED}")
    if not archive.name.endswith(_PACKED):
        raise ConfigError(f"{archive} is an archive: its name must end in {_PACKED}")
    _check_finished(row)
    chosen = file or (folder / SUBMISSION if (folder / SUBMISSION).exists() else None)
    values = {} if chosen is None else read_plain(chosen)
    manifest = pack.declared_of(folder)
    notes = tuple(_leave_out_images(values, manifest))
    values |= {name: value for name, value in given.items() if value is not None}
    values["track"] = row.track.name
    values["factory"] = _factory(row, values.get("factory"))
    values["identity"] = row.headline.result.identity
    values["manifest"] = manifest
    submission = submission_of(values, str(chosen or "submission"))
    row = replace(row, submission=submission)
    # Code is allowed, because submitters run their own.
    own = replace(options, allow_code=True)
    checked = conclude(checks_of(row), _verified(row, own, None))
    if checked.status == "failed":
        return checked
    write_submission(folder, submission)
    packed = pack.pack(folder, archive)
    return Submitted(row, submission, packed, (*notes, *packed.notes))


def _leave_out_images(values: dict[str, Any], manifest: str) -> Iterator[str]:
    """Leave out the archive of images if it is of other records, and say so."""
    if values.get("images") is not None and values.get("manifest") not in (None, manifest):
        values["images"] = None
        yield (
            "Left out `images`: they are of other records, such as those of a claim. Upload this "
            "row's own images, and add their URL and SHA-256."
        )


def _factory(row: BoardRow, given: object) -> object:
    """Return the factory of a new submission, which makes the defense of the headline run again.

    A run calls the defense of a JSON file by the stem of this file, which makes nothing.
    """
    name = row.headline.defense_name
    factory = name if given is None else given
    if not isinstance(factory, str):
        return factory  # the submission's own check says what is wrong
    if ":" in factory or factory in registry.names():
        return factory
    path = Path(factory)
    if path.suffix.lower() != ".json" or path.is_absolute() or ".." in path.parts:
        raise ConfigError(
            f"the factory {factory!r} makes no defense. If the defense is a JSON file, run this "
            f"command in the root of its repository and give its path there: --defense "
            f"configurations/{name}.json"
        )
    recorded = row.headline.run.run.spec.defenses
    settings: Any = next(each.config["settings"] for each in recorded if each.name == name)
    if registry.load_config(path) != DentConfig.from_dict(settings):
        raise ConfigError(f"{path} has other settings than the defense of the headline run")
    return path.as_posix()


def _check_finished(row: BoardRow) -> None:
    result = row.headline.result
    if result.status != "complete":
        raise ConfigError(
            f"the headline run is not finished ({result.units_done} of "
            f"{counted(result.units_planned, 'unit')}): `dent board run {row.track.name} --defense "
            f"{row.headline.defense_name} ... --out {row.folder}` resumes it"
        )


@dataclass(frozen=True)
class Recording:
    """What to record of a passed check, beside its results.

    Attributes:
        by: Who checks.
        nonce_source: Where the nonce of the row comes from; None if it is not stated.
    """

    by: str
    nonce_source: str | None = None


def check(
    path: Path,
    files: DownloadedFiles = _NOTHING,
    options: VerifyOptions = _DEFAULTS,
    reattack: Reattack | None = None,
    recording: Recording | None = None,
) -> RowCheck:
    """Check a row, or an archive of one.

    Args:
        path: The folder of the row, or the archive.
        files: The files that its submission names. Each is compared with its SHA-256 there.
        options: How to verify the row.
        reattack: Which attacks of the headline run to run again; none if None.
        recording: Who checks. If given, a passed check is added to the row's `trust.json`.

    Raises:
        ConfigError: The row names code that is not allowed, `recording` is given for an archive,
            `reattack` is given without images or has the nonce of the row, or the row has no nonce
            of which a source could be recorded.
        RecordError: There is no row, the archive is damaged, a file cannot be read, or the images
            are not those of the submission.
    """
    if recording is not None and path.is_file():
        raise ConfigError("--record writes into the folder of a row, and an archive has none")
    with _folder(path, files.images) as folder:
        manifest = pack.declared_of(folder)  # first, because the row may change during the check
        row = read_board_row(folder)
        _check_nonces(row, reattack, recording)
        checks = (*checks_of(row), *_of_files(row, files), *_of_base_model(row, options))
        own = functions()
        verifications = _verified(row, options, reattack)
        checked = conclude((*checks, *_of_process(options, replaced(own))), verifications)
    if row.track.practice:
        checked = checked.model_copy(update={"says": f"{checked.says}; {NOT_OF_THE_BOARD}"})
    if recording is not None and checked.status == "verified":
        _record(path, row, manifest, checked.verification, recording)
    return checked


def _of_files(row: BoardRow, files: DownloadedFiles) -> Iterator[Check]:
    """Yield the checks of the lock file and of the weights, if any were downloaded."""
    submission = row.submission
    if files.lock is not None:
        named = None if submission is None else submission.lock
        yield _compared("lock", [files.lock], [] if named is None else [named])
    if files.weights:
        yield _compared("weights", files.weights, () if submission is None else submission.weights)


def _of_base_model(row: BoardRow, options: VerifyOptions) -> Iterator[Check]:
    """Yield the check of the base model's part of every run, before the defense's code is imported.

    There is none if no code of the defense will be imported, or if a run has no images.
    """
    runs = [
        run
        for run in row.runs
        if (row.folder / run.name / TENSORS).is_dir()
        and run.result.spec.has_static
        and ":" in run.defense_name
    ]
    if (
        not runs
        or options.records_only
        or not options.allow_code
        or any(r.departures for r in runs)
    ):
        return
    problems: list[str] = []
    for run in runs:
        model, images = restore_base(run.run, options.data_root, options.device)
        problems += (f"{run.name}: {each}" for each in static_problems(run.run, model, images))
    yield outcome_of("base model", len(runs), problems)


def _of_process(options: VerifyOptions, names: list[str]) -> Iterator[Check]:
    """Yield the check that no code replaced functions of torch-dent or torch, if any could run."""
    if options.allow_code and not options.records_only:
        problems = [
            f"the code of the row has replaced {name} in the process of the checks"
            for name in names
        ]
        yield outcome_of("process", 1, problems)


def _compared(name: str, files: Sequence[Path], named: Sequence[FileOnline]) -> Check:
    """Compare files with those that the submission names: they must be the same ones."""
    digests = {path: sha256_of(path) for path in files}
    expected = {each.sha256 for each in named}
    strange = (
        f"{path} has SHA-256 {digest}, which the submission does not name"
        for path, digest in digests.items()
        if digest not in expected
    )
    missing = (
        f"{each.url} with SHA-256 {each.sha256} is not among the given files"
        for each in named
        if each.sha256 not in digests.values()
    )
    return outcome_of(name, len(digests), [*strange, *missing])


def _check_nonces(row: BoardRow, reattack: Reattack | None, recording: Recording | None) -> None:
    if row.nonce is None:
        if recording is not None and recording.nonce_source is not None:
            raise ConfigError(f"{row.folder} has no nonce: leave out --nonce-source")
        return
    if reattack is not None and reattack.nonce.strip() == row.nonce.strip():
        raise ConfigError(
            f"--reattack-nonce {reattack.nonce} is the nonce that drew the samples of the row. Its "
            "submitter knows it, and so knows which attacks it draws: draw another nonce"
        )


def _verified(
    row: BoardRow, options: VerifyOptions, reattack: Reattack | None
) -> dict[str, Verification]:
    """Verify every run of a row, because its page shows the figures of all of them.

    Attacks of the headline run alone run again: the row's trust counts those.
    """
    return {
        run.name: _verified_run(
            row.folder / run.name, run, options, reattack if run.name == HEADLINE else None
        )
        for run in row.runs
    }


def _verified_run(
    path: Path, variant: VariantResult, options: VerifyOptions, reattack: Reattack | None
) -> Verification:
    records_only = options.records_only or not (path / TENSORS).is_dir()
    if reattack is not None and records_only:
        raise ConfigError(
            "--reattack takes the images of the run, which are not here: give their archive by "
            "--images-archive"
        )
    subject = None
    if not records_only:
        subject = restore(
            variant.run,
            data_root=options.data_root,
            device=options.device,
            allow_code=options.allow_code,
        )
    with options.progress() as on_unit:
        return verify(path, subject, progress=on_unit, reattack=reattack)


def _record(
    folder: Path,
    row: BoardRow,
    manifest: str,
    verification: Verification,
    recording: Recording,
) -> None:
    again = verification.reattacked
    add_trust(
        folder,
        TrustEntry(
            state="records verified" if again is None else "re-attacked",
            identity=row.headline.result.identity,
            manifest=manifest,
            submission=None if row.submission is None else row.submission.digest,
            by=recording.by,
            date=datetime.now(UTC).date().isoformat(),
            nonce=None if again is None else again.nonce,
            nonce_source=recording.nonce_source,
            nonce_by=None if recording.nonce_source is None else recording.by,
            units=0 if again is None else len(again.units),
            of=0 if again is None else again.of,
            by_defense={} if again is None else again.by_defense,
            challenges=_challenges(row),
        ),
    )


def _challenges(row: BoardRow) -> dict[str, tuple[str, ...]]:
    """Return the checksums of all challenges of a row, by run: a check covers every one."""
    return {
        run.name: tuple(by_digest(every))
        for run in row.runs
        if (every := (*run.run.challenges, *run.unchecked))
    }


@contextmanager
def _folder(path: Path, images: Path | None) -> Iterator[Path]:
    """Yield a folder with the row and its images: the row's own, or a temporary one."""
    if path.is_dir() and images is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="dent-") as temporary:
        folder = Path(temporary) / "row"
        packed = Path(temporary) / "row.tar.gz" if path.is_dir() else path
        if path.is_dir():
            pack.pack(path, packed, checked=False)  # the check itself reports damaged records
        pack.unpack(packed, folder)
        submission = _copy_submission(path if path.is_dir() else path.parent, folder)
        if images is not None:
            _check_images(images, submission)
            pack.add_images(images, folder)
        yield folder


def _check_images(images: Path, submission: RowSubmission) -> None:
    sha256 = sha256_of(images)
    if submission.images is not None and submission.images.sha256 != sha256:
        raise RecordError(
            f"{images} has SHA-256 {sha256}, and the submission names images with "
            f"{submission.images.sha256}"
        )


def _copy_submission(source: Path, folder: Path) -> RowSubmission:
    file = source / SUBMISSION
    if not file.is_file():
        raise RecordError(f"there is no {SUBMISSION} in {source}")
    submission = submission_of(read_plain(file), str(file))
    write_submission(folder, submission)
    return submission
