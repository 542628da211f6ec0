"""The rows that the repository has are what they say."""

from pathlib import Path

import pytest

from dent.board.check import checks_of
from dent.board.listing import list_rows, read_board_row
from dent.board.trust import state_of
from dent.evaluation import verify

BOARD = Path(__file__).parents[2] / "board"
ROWS = sorted(path.parent for path in BOARD.rglob("row.json"))


def test_every_folder_with_a_row_is_listed() -> None:
    assert len(ROWS) >= 17
    rows = list_rows(BOARD)
    assert len(rows) == len(ROWS)
    assert {state_of(row.checks) for row in rows} == {"re-attacked"}


def test_rows_lie_in_the_order_of_their_verdicts_and_then_their_differences() -> None:
    order = ["robust gain", "the reference", "no gain", "inconclusive", "none", "harmful"]
    places = [
        (row.track.name, order.index(row.ruling), -(row.difference.value or 0.0))
        for row in list_rows(BOARD)
        if row.difference is not None
    ]
    assert places == sorted(places)
    assert {row.ruling for row in list_rows(BOARD)} >= {"no gain", "harmful"}


@pytest.mark.parametrize("folder", ROWS, ids=lambda folder: folder.name)
def test_a_row_is_of_its_track_and_its_records_are_whole(folder: Path) -> None:
    row = read_board_row(folder)
    assert [(each.name, each.problems) for each in checks_of(row) if each.state != "passed"] == []
    checked = verify(folder / "headline")
    assert [each.problems for each in checked.checks if each.state == "failed"] == []
