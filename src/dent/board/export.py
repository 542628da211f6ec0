"""Write rows of the board in the formats of other places."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dent.board.board_row import BoardRow
from dent.board.every_eval_ever import every_eval_ever
from dent.board.hugging_face import hugging_face
from dent.board.listing import list_rows
from dent.board.metrics import reason_to_omit
from dent.errors import ConfigError, UnknownNameError
from dent.storage.disk import write_atomically, writing
from dent.support.suggest import did_you_mean

PLACES: Final = ("huggingface", "every-eval-ever")


@dataclass(frozen=True)
class Exported:
    """The result of an export: the files, and the rows that were left out.

    Attributes:
        files: Paths of the written files within the folder.
        omitted: The name of each row that was left out, and the reason.
    """

    files: tuple[str, ...]
    omitted: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "files": list(self.files),
            "omitted": [{"name": name, "reason": reason} for name, reason in self.omitted],
        }


def export(folder: Path, place: str, out: Path, url: str | None, benchmark: str | None) -> Exported:
    """Write the rows below a folder in the format of a place.

    Raises:
        UnknownNameError: There is no such place.
        ConfigError: A benchmark is given for a place that has none, or is not ORG/NAME. Or two rows
            have the same file; nothing is written.
        RecordError: The folder is missing, a row is damaged, or a file cannot be written.
        MissingExtraError: The place needs a package that is not installed.
    """
    write = _writer(place, url, benchmark)
    files: dict[str, bytes] = {}
    owners: dict[str, Path] = {}
    omitted = []
    for row in list_rows(folder):
        reason = reason_to_omit(row)
        if reason is not None:
            omitted.append((row.name, reason))
            continue
        new = write(row)
        for path in new:
            _check_free(path, row.folder, owners)
        files.update(new)
    for path, content in files.items():
        with writing(out):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out / path, content)
    return Exported(tuple(files), tuple(omitted))


def _check_free(path: str, folder: Path, owners: dict[str, Path]) -> None:
    """Note that a row writes a file, and refuse a file that another row writes."""
    key = path.casefold()  # some file systems ignore case
    if key in owners:
        raise ConfigError(
            f"the rows {owners[key]} and {folder} would both be written to {path}: rename the "
            "folder or the row of one of them, or export them separately; nothing was written"
        )
    owners[key] = folder


def _writer(
    place: str, url: str | None, benchmark: str | None
) -> Callable[[BoardRow], Mapping[str, bytes]]:
    if place not in PLACES:
        raise UnknownNameError(
            f"there is no place {place!r}.{did_you_mean(place, PLACES)} --to takes "
            f"{' or '.join(PLACES)}"
        )
    if place == "huggingface":
        if benchmark is not None and (benchmark.count("/") != 1 or not all(benchmark.split("/"))):
            raise ConfigError(f"--benchmark expected ORG/NAME, got {benchmark!r}")
        return lambda row: hugging_face(row, benchmark, url)
    if benchmark is not None:
        raise ConfigError(f"--benchmark is for huggingface, and {place} has none")
    now = time.time()
    return lambda row: dict([every_eval_ever(row, now, url)])
