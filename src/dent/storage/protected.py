"""Refuse to write a page, table or file over the records of a run."""

from pathlib import Path
from typing import Final

from dent.errors import ConfigError
from dent.storage.disk import is_there

# Written out, because the modules that write these files take long to import.
_OWNERS: Final = ("run.json", "sweep.json", "row.json", "profile.json")
"""Files that make a folder a run or training, a sweep, a row of the board, or a profile."""
_RECORDS: Final = (
    *_OWNERS,
    *("plan.json", "journal.jsonl", "challenges.jsonl", "result.json"),
    *("submission.json", "trust.json"),
    *("card.json", "metrics.jsonl"),
    *("lock", "lock.holder"),
)
_IMAGES: Final = "adversarial"


def refuse_record(out: Path) -> None:
    """Refuse a file that is, or would be, part of the records in its folder.

    Args:
        out: The file to write. Links among its folders are followed.

    Raises:
        ConfigError: It has the name of a record, in the folder of a run, sweep or row; or it lies
            among the images of a run.
    """
    folder = out.absolute().parent.resolve()
    images = next((each for each in (folder, *folder.parents) if each.name == _IMAGES), None)
    if out.name in _RECORDS and _has_records(folder):
        reason = f"{folder} has the records of a run, and {out.name} is one of them"
    elif images is not None and _has_records(images.parent):
        reason = f"{images} has the images of a run"
    else:
        return
    raise ConfigError(f"{out} is not written: {reason}. Choose another name or folder")


def _has_records(folder: Path) -> bool:
    return any(is_there(folder / name) for name in _OWNERS)
