"""Submit a row of the board, and check one, in a terminal."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from dent.board import pack
from dent.board.board_row import BoardRow
from dent.board.check import RowCheck, conclude
from dent.board.listing import by_digest, read_board_row
from dent.board.pack import Packed
from dent.board.row_checks import checks_of
from dent.board.submission import (
    SUBMISSION,
    RowSubmission,
    read_plain,
    submission_of,
    write_submission,
)
from dent.board.tracks import HEADLINE
from dent.board.trust import TrustEntry, add_trust
from dent.cli import checking
from dent.cli.console import OUT
from dent.errors import ConfigError
from dent.evaluation import Reattack, Verification
from dent.evaluation.records.schema import TENSORS
from dent.storage.disk import read
from dent.storage.errors import RecordError
from dent.support.plural import counted

_PACKED = ".tar.gz"


@dataclass(frozen=True)
class Verifying:
    """The options for verifying the runs of a row.

    Attributes:
        root: Folder of datasets.
        device: The device to compute on.
        records_only: Load no model and submit nothing.
        allow_code: Import and call the `module:factory` names that the run records.
    """

    root: Path | None
    device: str | None
    records_only: bool = False
    allow_code: bool = False


def submit(
    folder: Path,
    file: Path | None,
    given: Mapping[str, str | None],
    out: Path | None,
    how: Verifying,
) -> tuple[RowSubmission, Packed] | None:
    """Verify a row, pack it and write its submission.

    Args:
        folder: The row.
        file: A JSON file with fields of the submission; by default the row's own, if it has one.
        given: Fields from options. They replace fields of the file.
        out: The archive; by default beside the folder.
        how: How to verify the row. Code is always allowed.

    Returns:
        The submission and its archives, or None if something is wrong with the row.

    Raises:
        ConfigError: The headline run is not finished, or a field is missing or wrong.
        RecordError: There is no row, or it is damaged.
    """
    row = read_board_row(folder)
    archive = out or folder.with_name(f"{folder.name}{_PACKED}")
    if not archive.name.endswith(_PACKED):
        raise ConfigError(f"{archive} is an archive: its name must end in {_PACKED}")
    _check_finished(row)
    chosen = file or (folder / SUBMISSION if (folder / SUBMISSION).exists() else None)
    values = {} if chosen is None else read_plain(chosen)
    values |= {name: value for name, value in given.items() if value is not None}
    values["track"] = row.track.name
    values.setdefault("factory", row.headline.defense_name)
    values["identity"] = row.headline.result.identity
    values["manifest"] = pack.declared_of(folder)
    submission = submission_of(values, str(chosen or "submission"))
    row = replace(row, submission=submission)
    # Code is allowed, because submitters run their own.
    own = Verifying(how.root, how.device, how.records_only, allow_code=True)
    checked = conclude(checks_of(row), _verified(row, own, None))
    if checked.status == "failed":
        checking.show(str(folder), checked.says, checked.checks)
        return None
    write_submission(folder, submission)
    return submission, pack.pack(folder, archive)


def _check_finished(row: BoardRow) -> None:
    result = row.headline.result
    if result.status != "complete":
        raise ConfigError(
            f"the headline run is not finished ({result.units_done} of "
            f"{counted(result.units_planned, 'unit')}): `dent board run {row.track.name} --defense "
            f"{row.headline.defense_name} ... --out {row.folder}` resumes it"
        )


def say_next(folder: Path, submission: RowSubmission, packed: Packed) -> None:
    """Print how to open the pull request."""
    place = f"board/{submission.track.replace('/', '_')}/{folder.name}"
    images = "" if packed.images is None else f", and {packed.images} with the images"
    for line in (
        f"Written: {folder / SUBMISSION}, and {packed.records} with the records{images}.",
        "To submit it:",
        f"  1. Fork the repository of torch-dent, and unpack {packed.records} into {place}/.",
        f"  2. Copy {folder / SUBMISSION} there.",
        "  3. Upload the archive of images, and add its URL and SHA-256 to submission.json.",
        f'  4. Open a pull request called "Row: {submission.name} on {submission.track}".',
        "A maintainer then draws the other half of the samples, and runs `dent board check`.",
    ):
        OUT.print(line, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Recording:
    """What to record of a passed check, beside its results.

    Attributes:
        by: Who checks.
        nonce_source: Where the nonce of the row comes from; None if it is not stated.
    """

    by: str
    nonce_source: str | None = None


def recording(by: str | None, nonce_source: str | None) -> Recording | None:
    """Return what to record; None without `--record`.

    Raises:
        ConfigError: There is a source, but nothing to record it with.
    """
    if by is None:
        if nonce_source is not None:
            raise ConfigError("--nonce-source is recorded with a check: add --record NAME.")
        return None
    if nonce_source is not None and not nonce_source.strip():
        raise ConfigError("--nonce-source expected a text that says where the nonce comes from.")
    return Recording(by, nonce_source)


def check(
    path: Path,
    images: Path | None,
    how: Verifying,
    reattack: Reattack | None,
    recording: Recording | None,
) -> RowCheck:
    """Check a row, or an archive of one.

    Args:
        path: The folder of the row, or the archive.
        images: The archive of its images.
        how: How to verify the row.
        reattack: Which attacks of the headline run to run again; none if None.
        recording: Who checks. If given, a passed check is added to the row's `trust.json`.

    Raises:
        ConfigError: The row names code that is not allowed, `recording` is given for an archive,
            `reattack` is given without images or has the nonce of the row, or the row has no nonce
            of which a source could be recorded.
        RecordError: There is no row, or the archive is damaged.
    """
    if recording is not None and path.is_file():
        raise ConfigError("--record writes into the folder of a row, and an archive has none")
    with _folder(path, images) as folder:
        manifest = pack.declared_of(folder)  # first, because the row may change during the check
        row = read_board_row(folder)
        _check_nonces(row, reattack, recording)
        checked = conclude(checks_of(row), _verified(row, how, reattack))
    if recording is not None and checked.status == "verified":
        _record(path, row, manifest, checked.verification, recording)
    return checked


def _check_nonces(row: BoardRow, reattack: Reattack | None, recording: Recording | None) -> None:
    if row.nonce is None:
        if recording is not None and recording.nonce_source is not None:
            raise ConfigError(f"{row.folder} has no nonce: leave out --nonce-source")
        return
    if reattack is not None and reattack.nonce.strip() == row.nonce.strip():
        raise ConfigError(
            f"--nonce {reattack.nonce} is the nonce that drew the samples of the row. Its "
            "submitter knows it, and so knows which attacks it draws: draw another nonce"
        )


def _verified(row: BoardRow, how: Verifying, reattack: Reattack | None) -> dict[str, Verification]:
    """Verify every run of a row, because its page shows the figures of all of them.

    Attacks of the headline run alone run again: the row's trust counts those.
    """
    return {
        run.name: _verified_run(
            row.folder / run.name, how, reattack if run.name == HEADLINE else None
        )
        for run in row.runs
    }


def _verified_run(path: Path, how: Verifying, reattack: Reattack | None) -> Verification:
    records_only = how.records_only or not (path / TENSORS).is_dir()
    if reattack is not None and records_only:
        raise ConfigError(
            "--reattack takes the images of the run, which are not here: give their archive by "
            "--images"
        )
    return checking.verify(path, None, how.root, how.device, records_only, how.allow_code, reattack)


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
    sha256 = hashlib.sha256(read(images)).hexdigest()
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
