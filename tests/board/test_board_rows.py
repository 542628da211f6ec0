"""Test the rows that are committed to the repository."""

from pathlib import Path

import pytest

from dent.board.listing import list_rows, read_board_row
from dent.board.row_checks import checks_of
from dent.board.tracks import HEADLINE
from dent.board.trust import state_of
from dent.board.verification import conclude
from dent.evaluation import verify
from dent.evaluation.verification.verify import Check, Verification

BOARD = Path(__file__).parents[2] / "board"
ROWS = sorted(path.parent for path in BOARD.rglob("row.json"))


def test_every_row_folder_is_listed_and_was_re_attacked() -> None:
    assert len(ROWS) >= 31
    rows = list_rows(BOARD)
    assert len(rows) == len(ROWS)
    assert {state_of(row.checks) for row in rows} == {row.state for row in rows} == {"re-attacked"}
    assert all(row.nonce_source is not None for row in rows)
    assert not any(row.track.practice for row in rows)


def test_rows_are_sorted_by_track_verdict_and_whether_their_run_stopped_early() -> None:
    order = ["robust gain", "the reference", "no gain", "inconclusive", "none", "harmful"]
    places = [
        (
            row.track.name,
            order.index(row.ruling),
            row.headline.decided is not None,
            0 if row.headline.decided is None else -row.headline.decided.after,
            -(row.difference.value or 0.0),
        )
        for row in list_rows(BOARD)
        if row.difference is not None
    ]
    assert places == sorted(places)
    assert {row.ruling for row in list_rows(BOARD)} >= {"no gain", "harmful"}


def test_only_results_by_other_rules_leave_a_row_verified() -> None:
    """The board makes its own rulings from the records, and reads none from `result.json`."""
    served = Check(name="served", state="passed", looked_at=1, problems=())
    for name, looked_at, says in (
        ("result", 1, "records verified, attacks not re-run"),
        ("result", 0, "incomplete, attacks not re-run"),
        ("probes", 1, "incomplete, attacks not re-run"),
    ):
        other = Check(name=name, state="not-run", looked_at=looked_at, problems=("why",))
        found = Verification(status="incomplete", identity=None, checks=(served, other))
        assert conclude((), {HEADLINE: found}).says == says


@pytest.mark.parametrize("folder", ROWS, ids=lambda folder: folder.name)
def test_row_passes_the_checks_of_its_track_and_its_records_verify(folder: Path) -> None:
    row = read_board_row(folder)
    assert [(each.name, each.problems) for each in checks_of(row) if each.state != "passed"] == []
    checked = verify(folder / "headline")
    assert [each.problems for each in checked.checks if each.state == "failed"] == []
