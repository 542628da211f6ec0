"""The folder of a row: the track and nonce of its runs, and one run for each variant."""

from pathlib import Path
from typing import Final, Literal

from dent.board.tracks import Track, track
from dent.errors import ConfigError
from dent.evaluation.records.record_file import dump, read_record
from dent.evaluation.records.spec import Sha256, differences
from dent.storage.canonical import Record
from dent.storage.disk import is_there, write_atomically, writing
from dent.storage.errors import RecordError

ROW: Final = "row.json"


class RowRecord(Record):
    """`row.json`."""

    schema_version: Literal[1] = 1
    track: str
    identity: Sha256
    """Identity of the track when the row was begun."""
    nonce: str | None
    """Null if only the fixed half was evaluated."""


def begin(folder: Path, chosen: Track, nonce: str | None) -> None:
    """Set up the folder of a row, or check that an existing one has the same track and nonce.

    Raises:
        ConfigError: The folder has another track or nonce.
        RecordError: The folder has other contents, or cannot be written to.
    """
    record = RowRecord(track=chosen.name, identity=chosen.identity, nonce=nonce)
    if is_there(folder / ROW):
        found = read_row(folder)
        if found.identity in chosen.identities:
            found = found.model_copy(update={"identity": chosen.identity})
        changed = differences(found.to_json(), record.to_json())
        if changed:
            raise ConfigError(
                f"{folder} is the row of another evaluation, and nothing was changed: "
                f"{'; '.join(changed)}. Choose another folder{_keeping(folder, found, nonce)}"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecordError(
            f"{folder} contains files that are not part of a row of the board: nothing was "
            "changed; choose a new or empty folder"
        )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / ROW, dump(record))


def _keeping(folder: Path, found: RowRecord, nonce: str | None) -> str:
    """Return how a row takes over the submission of a claim, if the folder holds a claim."""
    if found.nonce is not None or nonce is None:
        return ""
    return f", and take over its submission: {take_over(str(folder))}"


def take_over(claim: str = "CLAIM", row: str = "ROW") -> str:
    """Return the command that takes over the submission of a claim for the row made from it."""
    return f"`dent board submit {row} --from {claim}/submission.json`"


def read_row(folder: Path) -> RowRecord:
    """Read the track and nonce of a row.

    Raises:
        RecordError: The folder is not a row, or `row.json` is damaged.
        SchemaVersionError: A newer torch-dent wrote the row.
    """
    if not is_there(folder / ROW):
        raise RecordError(
            f"{folder} is not a row of the board: it has no {ROW}, which `dent board run` writes"
        )
    return read_record(folder / ROW, RowRecord)


def track_of(record: RowRecord, folder: Path) -> Track:
    """Return the track of a row.

    Raises:
        UnknownNameError: There is no such track.
        RecordError: The track has changed since the row was written.
    """
    chosen = track(record.track)
    if record.identity not in chosen.identities:
        raise RecordError(
            f"{folder / ROW}: the track {record.track!r} had the identity {record.identity}, and "
            f"has {chosen.identity} in this version of torch-dent"
        )
    return chosen
