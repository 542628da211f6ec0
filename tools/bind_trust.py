"""Bind the checks of rows by an older torch-dent to the records that were checked.

Older entries of `trust.json` name no records, and have no effect. This adds the digest of the
records to them if it equals the one in `submission.json`, which `dent board check` had compared:

    PYTHONPATH=src python tools/bind_trust.py board/TRACK/ROW ...

A maintainer runs it once on their own rows, after checking with `git log` that nobody has changed
the records and `submission.json` since the check.
"""

import sys
from pathlib import Path

from dent.board.pack import manifest_of
from dent.board.submission import read_submission
from dent.board.tracks import HEADLINE
from dent.board.trust import TRUST, read_trust
from dent.evaluation.records.folder import dump, read_run
from dent.storage.disk import write_atomically


def bind(folder: Path) -> str:
    """Bind the checks of a row, and return what was done.

    Raises:
        SystemExit: The records are not those of `submission.json`.
    """
    submission, trust = read_submission(folder), read_trust(folder)
    identity = read_run(folder / HEADLINE).identity
    old = [e for e in trust.entries if (e.identity, e.manifest) == (identity, None)]
    if not old:
        return "nothing to do"
    found = manifest_of(folder).declared
    if submission is None or submission.manifest != found or submission.identity != identity:
        raise SystemExit(f"{folder}: the records are not those of submission.json")
    entries = tuple(
        entry.model_copy(update={"manifest": found}) if entry in old else entry
        for entry in trust.entries
    )
    write_atomically(folder / TRUST, dump(trust.model_copy(update={"entries": entries})))
    return f"{len(old)} bound to {found}"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(f"{argument}: {bind(Path(argument))}")
