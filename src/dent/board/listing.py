"""Read the rows of the board from their folders."""

import os
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Final

from dent.board import tracks
from dent.board.board_row import BoardRow, RowRuling, VariantResult
from dent.board.pack import declared_of
from dent.board.row_checks import checks_of
from dent.board.row_folder import ROW, read_row, track_of
from dent.board.submission import read_submission
from dent.board.track_rules import departures
from dent.board.tracks import HEADLINE, VIEWS, Track
from dent.board.trust import TRUST, CheckedFiles, challenges_in, read_trust
from dent.evaluation.records.folder import PLAN, RESULT, RUN
from dent.evaluation.records.journal import CHALLENGES, JOURNAL
from dent.evaluation.records.schema import ChallengeRecord
from dent.evaluation.results.recorded_run import RecordedRun, load_run
from dent.storage.canonical import digest
from dent.storage.disk import is_there, refuse_unreadable
from dent.storage.errors import RecordError
from dent.support.plural import counted

_RECORDS: Final = (RUN, PLAN, JOURNAL)
_ORDER: Final[tuple[RowRuling, ...]] = (
    "robust gain",
    "the reference",
    "no gain",
    "inconclusive",
    "none",
    "harmful",
)


def list_rows(root: Path) -> tuple[BoardRow, ...]:
    """Read every row below a folder, sorted by track and verdict. Void rows come last.

    Tracks have the order of `tracks.tracks()`, with practice tracks last.
    Rows with equal verdicts are sorted by difference. Those whose run stopped early come after the
    others, sorted by the number of attacks that they stood and then by their upper bound.

    Raises:
        RecordError: The folder is missing, or a row is damaged.
        UnknownNameError: This version does not have the track of a row.
    """
    if not root.is_dir():
        raise RecordError(f"there is no folder {root}")
    rows = [read_board_row(folder) for folder in _folders(root)]
    order = list(tracks.tracks())
    return tuple(
        sorted(
            rows,
            key=lambda row: (row.track.practice, order.index(row.track.name), *rank(row)),
        )
    )


def read_board_row(folder: Path) -> BoardRow:
    """Read one row.

    Raises:
        RecordError: The row is damaged, or has no headline run, has a result without its records,
            or lacks a challenge that a maintainer has checked.
        UnknownNameError: This version does not have the track of the row.
    """
    record = read_row(folder)
    chosen = track_of(record, folder)
    recorded = {
        variant: run
        for variant in chosen.variants
        if (run := _recorded(folder / variant)) is not None
    }
    if HEADLINE not in recorded:
        raise RecordError(
            f"{folder} has no {HEADLINE} run yet: `dent board run {chosen.name} ... --out {folder}`"
        )
    trust, submission = read_trust(folder), read_submission(folder)
    bound = CheckedFiles(
        identity=recorded[HEADLINE].run.spec.identity,
        manifest=declared_of(folder),
        submission=None if submission is None else submission.digest,
    )
    # A challenge was made to the run, so it counts whatever the submission says by now.
    checked = challenges_in(trust.of_run(bound.identity))
    _refuse_lost(folder, recorded, checked)
    runs = {
        name: _variant(name, run, checked.get(name, frozenset()), chosen, record.nonce)
        for name, run in recorded.items()
    }
    row = BoardRow(
        folder=folder,
        track=chosen,
        nonce=record.nonce,
        submission=submission,
        headline=runs[HEADLINE],
        variants=tuple(found for name, found in runs.items() if name not in (HEADLINE, VIEWS)),
        views=runs.get(VIEWS),
        checks=trust.of(bound),
        unbound=trust.unbound(bound),
        void=trust.void,
    )
    return replace(row, row_checks=checks_of(row))


def _recorded(path: Path) -> RecordedRun | None:
    """Read a run of a row; None if there is none."""
    missing = [name for name in _RECORDS if not is_there(path / name)]
    if len(missing) == len(_RECORDS) and not is_there(path / RESULT):
        return None
    if RUN in missing or (missing and is_there(path / RESULT)):
        raise RecordError(
            f"{path} has no {', '.join(missing)}: the board shows only what follows from the "
            "records of a run"
        )
    return load_run(path)


def _variant(
    name: str, recorded: RecordedRun, checked: Set[str], chosen: Track, nonce: str | None
) -> VariantResult:
    """Return a run of a row, in which only challenges count that a maintainer has checked."""
    digests = by_digest(recorded.challenges)
    counts = tuple(challenge for sha256, challenge in digests.items() if sha256 in checked)
    unchecked = tuple(challenge for sha256, challenge in digests.items() if sha256 not in checked)
    run = replace(recorded, challenges=counts) if unchecked else recorded
    result = run.result
    left = departures(chosen, name, nonce, result.spec)
    return VariantResult(name, result, run, left, unchecked)


def by_digest(challenges: Iterable[ChallengeRecord]) -> dict[str, ChallengeRecord]:
    """Return challenges by the `sha256` of their lines in `challenges.jsonl`."""
    return {digest(challenge.to_json()): challenge for challenge in challenges}


def _refuse_lost(
    folder: Path, recorded: Mapping[str, RecordedRun], checked: Mapping[str, Set[str]]
) -> None:
    """Check that no challenge is gone that a maintainer has checked.

    Raises:
        RecordError: One is gone.
    """
    for name, digests in checked.items():
        there = by_digest(recorded[name].challenges) if name in recorded else {}
        lost = sorted(digests - there.keys())
        if lost:
            raise RecordError(
                f"{folder / name / CHALLENGES} lacks {counted(len(lost), 'challenge')} that "
                f"{TRUST} says was checked, such as the line with the sha256 {lost[0]}: restore "
                "it, because challenges are permanent"
            )


def _folders(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root, onerror=refuse_unreadable):
        names.sort()
        if ROW in files:
            names.clear()
            yield Path(folder)


def rank(row: BoardRow) -> tuple[bool, int, bool, int, float, str]:
    """Return the place of a row within its track, in ascending order.

    The difference of a run that stopped early is an upper bound, which is lower the longer the run
    was. So among equal rulings these runs come after the others, and first those that stood the
    most attacks.
    """
    difference, decided = row.difference, row.headline.decided
    value = None if difference is None else difference.value
    return (
        row.void is not None,
        _ORDER.index(row.ruling),
        decided is not None,
        0 if decided is None else -decided.after,
        0.0 if value is None else -value,
        row.name,
    )
