"""The submission of a row: where the defense comes from, and who is responsible for it."""

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError

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
_LOOKS_LIKE: Final = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b\u051d"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0405\u0406\u0408"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7"
    "\u03bf\u03bd\u03b9\u0131\u0261",
    "aeopcyxijshdqwABEKMHOPCTXSIJABEZHIKMNOPTYXoviig",
)
"""Cyrillic and Greek letters, and the Latin ones that they look like."""
_COMMIT: Final = (
    "expected the full hash of 40 hexadecimal digits, as `git rev-parse HEAD` prints it"
)

_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
"""Characters that Unicode calls letters, marks or symbols, and that show nothing."""
_MOST_MARKS: Final = 2
"""Largest number of marks on one letter. More of them cover the lines above and below."""


def _visible(text: str) -> str:
    """Check that a text contains no character that hides, or hides other text.

    Raises:
        ValueError: It has a control character, an invisible one, or too many marks on a letter.
    """
    marks = 0
    for character in text:
        if not character.isprintable() or _INVISIBLE.match(character):
            raise ValueError(f"it contains U+{ord(character):04X}, which is not visible")
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks > _MOST_MARKS:
            raise ValueError(f"it has more than {_MOST_MARKS} marks on a letter")
    return text


def _plain_address(url: str) -> str:
    """Check that an address names its host, and names it plainly.

    Raises:
        ValueError: It has no valid host, or a user name, which can look like the host.
    """
    address = urlsplit(url)
    if not address.hostname or "@" in address.netloc:
        raise ValueError("expected https://HOST/..., without a user name")
    return url


_Url = Annotated[
    str, Field(pattern="^https?://[!#-&(-;=?-~]+$", max_length=500), AfterValidator(_plain_address)
]
_Line = Annotated[
    str,
    Field(min_length=1, max_length=500, pattern=r"^[^\r\n]*\S[^\r\n]*$"),
    AfterValidator(_visible),
]


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
    name: Annotated[_Line, Field(max_length=60)]
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
            f"{_COMMIT if each['loc'] == ('commit',) else _worded(each['msg'])}"
            for each in error.errors()
        )
        raise ConfigError(f"{where}: {problems}. docs/board.md describes every field") from None
    submission.check()
    return submission


def _worded(message: str) -> str:
    plain = message.removeprefix("Value error, ")
    return f"{plain[0].lower()}{plain[1:]}"


def reads_like(name: str) -> str:
    """Return a text that is the same for names that readers would take for one another.

    Only letters, digits and `+` remain, in lower case. Cyrillic and Greek letters that look like
    Latin ones are replaced by these.
    """
    plain = unicodedata.normalize("NFKD", name.translate(_LOOKS_LIKE)).casefold()
    return "".join(character for character in plain if character.isalnum() or character == "+")


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
