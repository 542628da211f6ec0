"""Test the rows that are committed to the repository."""

from pathlib import Path

import pytest

from dent.board.board_row import BoardRow
from dent.board.listing import list_rows
from dent.board.row_checks import checks_of
from dent.board.tracks import HEADLINE, tracks
from dent.board.trust import state_of
from dent.board.verification import conclude
from dent.evaluation import load_run, verify
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.result import Difference
from dent.evaluation.verification.outcome import Check, Verification
from dent.report import wording

ROOT = Path(__file__).parents[2]
BOARD = ROOT / "board"
ROWS = sorted(path.parent for path in BOARD.rglob("row.json"))


@pytest.fixture(scope="module")
def rows() -> tuple[BoardRow, ...]:
    """Return the rows. Reading them takes seconds."""
    return list_rows(BOARD)


@pytest.fixture(scope="module")
def by_folder(rows: tuple[BoardRow, ...]) -> dict[str, BoardRow]:
    """Return the rows by their folder below `board`."""
    return {row.folder.relative_to(BOARD).as_posix(): row for row in rows}


def test_every_row_folder_is_listed_and_was_re_attacked(rows: tuple[BoardRow, ...]) -> None:
    assert len(ROWS) >= 32
    assert len(rows) == len(ROWS)
    assert {state_of(row.checks) for row in rows} == {row.state for row in rows} == {"re-attacked"}
    assert all(row.nonce_source is not None for row in rows)
    assert not any(row.track.practice for row in rows)


def test_rows_are_sorted_by_track_verdict_and_whether_their_run_stopped_early(
    rows: tuple[BoardRow, ...],
) -> None:
    order = ["robust gain", "the reference", "no gain", "inconclusive", "none", "harmful"]
    places = [
        (
            list(tracks()).index(row.track.name),
            order.index(row.ruling),
            row.headline.decided is not None,
            0 if row.headline.decided is None else -row.headline.decided.after,
            -(row.difference.value or 0.0),
        )
        for row in rows
        if row.difference is not None
    ]
    assert places == sorted(places)
    assert {row.ruling for row in rows} >= {"no gain", "harmful"}


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
def test_row_passes_the_checks_of_its_track_and_its_records_verify(
    folder: Path, by_folder: dict[str, BoardRow]
) -> None:
    row = by_folder[folder.relative_to(BOARD).as_posix()]
    assert [(each.name, each.problems) for each in checks_of(row) if each.state != "passed"] == []
    checked = verify(folder / "headline")
    assert [each.problems for each in checked.checks if each.state == "failed"] == []


def test_pages_say_what_the_rows_of_dent_say(by_folder: dict[str, BoardRow]) -> None:
    plus, batch_wise = (by_folder[f"cifar10-l2-0.5-v1/{name}"] for name in ("dent+", "dent"))
    batch_wise_linf = by_folder["cifar10-linf-8_255-v1/dent"]
    rows = (plus, batch_wise, batch_wise_linf)
    assert {row.ruling for row in rows} == {"harmful"}
    lower, much_lower, lower_linf = (_lower(row) for row in rows)
    readme, results, configuration = (
        " ".join((ROOT / name).read_text(encoding="utf-8").split())
        for name in ("README.md", "docs/evaluation/results.md", "docs/configuration.md")
    )
    assert f"dent+ is *harmful*. Its clean accuracy is {lower}, and no robust gain was" in readme
    assert f"dent+ is *harmful*: its clean accuracy is {lower}, and no robust gain was" in results
    assert f"dent with 30 steps is *harmful*, too: its clean accuracy is {much_lower}" in results
    assert (
        f"on the l∞ track, its clean accuracy is {lower_linf}; on the l2 track, {much_lower}"
        in configuration
    )
    assert f"dent+ is *harmful*, too: its clean accuracy is {lower}." in configuration
    for name in ("dent+", "dent", "dent-10", "dent-smoothing"):
        row = by_folder[f"cifar10-linf-8_255-v1/{name}"]
        recorded = load_run(row.folder / "headline").result.defenses[row.headline.defense_name]
        assert recorded.verdict is not None
        assert row.ruling == recorded.verdict.ruling
        before = (recorded.difference, recorded.verdict.natural)
        now = (row.difference, row.natural)
        for kind, old, new in zip(("robust", "clean"), before, now, strict=True):
            line = f"| {name} | {kind} | {_interval(old)} | {_interval(new)} |"
            assert (line in results) is (_interval(new) != _interval(old)), line


def test_pages_say_how_long_the_runs_of_rows_took() -> None:
    of_static, of_defense, whole = [], {}, []
    for folder in BOARD.glob("*/*/headline"):
        minutes = {STATIC: 0.0}
        for record in load_run(folder).records.values():
            at = minutes.get(record.defense, 0.0)
            minutes[record.defense] = at + record.timing.total / 60
        of_static.append(minutes.pop(STATIC))
        for of_this in minutes.values():
            of_defense[folder.parents[1].name, folder.parent.name] = of_this
            whole.append(of_static[-1] + of_this)
    assert round(min(whole), -1) == 20
    assert round(max(whole) / 60) == 3
    assert min(of_defense.values()) < 1
    readme, suite, board = (
        " ".join((ROOT / name).read_text(encoding="utf-8").split())
        for name in ("README.md", "docs/evaluation/suite.md", "docs/board.md")
    )
    assert "Such a run took from 20 minutes to 3 hours on 2 CPU cores" in readme
    assert (
        f"took {min(of_static):.0f} to {max(of_static):.0f} minutes for the static model" in suite
    )
    assert f"less than a minute to {max(of_defense.values()):.0f} minutes" in suite
    batch_wise = of_defense["cifar10-linf-8_255-v1", "dent"]
    assert f"{batch_wise:.0f} minutes for dent with 30 steps" in board
    of_views = of_defense["cifar10-l2-0.5-v1", "tte"]
    assert f"over 6 views needed two attacks, in {of_views:.0f} minutes with one thread" in board


def _lower(row: BoardRow) -> str:
    """Return the loss of clean accuracy as pages state it: `1.8 points lower [0.2, 3.3]`."""
    difference = row.natural
    assert difference is not None
    assert difference.value is not None
    assert difference.interval is not None
    value, high, low = (100 * -each for each in (difference.value, *difference.interval))
    return f"{value:.1f} points lower [{low:.1f}, {high:.1f}]"


def _interval(difference: Difference | None) -> str:
    assert difference is not None
    return wording.points_interval(difference.interval)
