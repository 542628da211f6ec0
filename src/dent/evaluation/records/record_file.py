"""A file with one record: JSON with a schema version."""

import json
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from pydantic import ValidationError

from dent.storage.canonical import Record
from dent.storage.disk import read
from dent.storage.errors import RecordError, SchemaVersionError
from dent.storage.plain_json import parse, problem_of
from dent.support.printable import encodable

LARGEST_JSON: Final = 64 * 2**20
"""Maximum bytes of a file with one record. The plan of a million samples takes half of it."""
_Kept = TypeVar("_Kept", bound=Record)


def dump(record: Record) -> bytes:
    """Return the content of a file with one record: indented JSON.

    Raises:
        RecordError: A text has a lone surrogate, which no reader would accept.
    """
    plain = record.to_json()
    text = json.dumps(plain, indent=1, allow_nan=False) + "\n"
    if "\\ud" in text:  # it has surrogates, which are fine in pairs
        try:
            json.dumps(plain, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            shown = encodable(error.object[max(0, error.start - 60) : error.end])
            raise RecordError(
                f"a text is not valid Unicode, so it is not recorded: {shown}"
            ) from None
    return text.encode()


def read_record(path: Path, kind: type[_Kept]) -> _Kept:
    """Read a file with one record that has a schema version.

    Raises:
        RecordError: The file is missing or damaged.
        SchemaVersionError: The file was written by a newer torch-dent.
    """
    content = read(path, LARGEST_JSON)
    try:
        plain = parse(content)
        version = plain["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise RecordError(
            f"{path} is damaged: expected JSON with a schema_version. Restore it, or start over in "
            "another folder; nothing was changed"
        ) from None
    newest = max(get_args(kind.model_fields["schema_version"].annotation))
    if isinstance(version, int) and version > newest:
        raise SchemaVersionError(
            f"{path} was written by a newer torch-dent (schema version {version}; this one reads "
            f"up to {newest}): upgrade torch-dent. Nothing was changed"
        )
    try:
        return kind.model_validate_json(_mended(plain, content))
    except ValidationError as error:
        raise RecordError(f"{path}: {problem_of(error)}. Nothing was changed") from None


def _mended(plain: Any, content: bytes) -> bytes:
    """Return the content of a file with readable error messages.

    Older versions wrote messages with the name of a file that is not valid UTF-8.
    """
    sessions = plain.get("sessions")
    mended = False
    for session in sessions if isinstance(sessions, list) else ():
        message = session.get("message") if isinstance(session, dict) else None
        if isinstance(message, str) and encodable(message) != message:
            session["message"], mended = encodable(message), True
    return json.dumps(plain).encode() if mended else content
