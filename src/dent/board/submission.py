"""The submission of a row: where the defense comes from, and who is responsible for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from dent.errors import ConfigError
from dent.evaluation.records.record_file import dump, read_record
from dent.evaluation.records.spec import Sha256
from dent.storage.canonical import Record, digest
from dent.storage.disk import is_there, read, write_atomically
from dent.storage.errors import RecordError
from dent.storage.plain_json import parse

SUBMISSION: Final = "submission.json"
_LARGEST: Final = 2**20
_IDENTIFYING: Final = (
    "name",
    "track",
    "factory",
    "repository",
    "commit",
    "lock",
    "weights",
    "known_attacks",
    "identity",
)
"""Fields that may not change after a check of the row. Adding one voids all recorded checks."""
_COMMIT: Final = (
    "expected the full hash of 40 hexadecimal digits, as `git rev-parse HEAD` prints it"
)

_Url = Annotated[str, Field(pattern=r"^https?://[^\s<>\"']+$", max_length=500)]
_Line = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\r\n]*\S[^\r\n]*$")]


class FileOnline(Record):
    """A file that can be fetched, and checked."""

    url: _Url
    sha256: Sha256


class KnownAttack(Record):
    """An attack on the defense that somebody has published."""

    title: _Line
    url: _Url


class RowSubmission(Record):
    """`submission.json` in the folder of a row."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^\r\n]*\S[^\r\n]*$")]
    """Name of the row on the board."""
    track: _Line
    """Name of the track, as listed by `dent board tracks`."""
    factory: _Line
    """The value of `--defense`: a name of this package, or `package.module:factory`."""
    repository: _Url | None = None
    """URL of the defense's code; null for a defense of this package."""
    commit: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None
    """Commit of the repository."""
    lock: FileOnline | None = None
    """The lock file of the environment that it runs in."""
    weights: tuple[FileOnline, ...] = ()
    """Weights in addition to the base model's."""
    paper: _Url | None = None
    contact: _Line
    """Who answers questions: an email address or an account."""
    license: _Line
    """License of the code, as an SPDX identifier."""
    evaluated_by: _Line
    """Who ran the evaluation."""
    known_attacks: tuple[KnownAttack, ...] = ()
    images: FileOnline | None = None
    """The archive of adversarial images that `dent pack` writes beside the records."""
    identity: Sha256 | None = None
    """Identity of the headline run; `dent board submit` fills it in."""
    manifest: Sha256 | None = None
    """Digest of the packed records; `dent board submit` fills it in."""

    @property
    def digest(self) -> str:
        """SHA-256 of the fields that say what was evaluated, by which code, and what is known."""
        values = self.to_json()
        return digest({name: values[name] for name in _IDENTIFYING})

    def check(self) -> None:
        """Check that the code of the defense can be found.

        Raises:
            ConfigError: The factory is the submitter's own, but the repository or commit is
                missing.
        """
        ours = self.factory.partition(":")[0].split(".")[0] == "dent"
        own = ":" in self.factory and not ours
        if own and (self.repository is None or self.commit is None):
            raise ConfigError(
                f"the factory {self.factory!r} is code of your own: give the repository and the "
                "commit (40 hexadecimal digits) that hold it"
            )


def submission_of(values: Mapping[str, Any], where: str) -> RowSubmission:
    """Make a submission from plain values.

    Args:
        values: The values by field.
        where: Where they come from, for the error message.

    Raises:
        ConfigError: A field is missing, unknown or wrong (the message names all of them), or
            `RowSubmission.check` fails.
    """
    try:
        submission = RowSubmission.model_validate(values, strict=False)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'submission'}: "
            f"{_COMMIT if each['loc'] == ('commit',) else each['msg'].lower()}"
            for each in error.errors()
        )
        raise ConfigError(f"{where}: {problems}. docs/board.md describes every field") from None
    submission.check()
    return submission


def read_plain(path: Path) -> dict[str, Any]:
    """Read the fields of a submission, which need not be complete.

    Raises:
        ConfigError: The file is missing, or is not a JSON object.
    """
    try:
        values = parse(read(path, _LARGEST))
    except RecordError as error:
        raise ConfigError(str(error)) from None
    except ValueError as error:
        raise ConfigError(f"{path} expected a JSON object: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} expected a JSON object, got {type(values).__name__}")
    return values


def read_submission(folder: Path) -> RowSubmission | None:
    """Read the submission of a row; None if it has none.

    Raises:
        RecordError: The submission is damaged, or `RowSubmission.check` fails.
    """
    if not is_there(folder / SUBMISSION):
        return None
    submission = read_record(folder / SUBMISSION, RowSubmission)
    try:
        submission.check()
    except ConfigError as error:
        raise RecordError(f"{folder / SUBMISSION}: {error}") from None
    return submission


def write_submission(folder: Path, submission: RowSubmission) -> None:
    """Write the submission of a row.

    Raises:
        RecordError: The file cannot be written.
    """
    write_atomically(folder / SUBMISSION, dump(submission))
