"""The queue of runs, and the visitors with their files, without a browser or a network."""

from pathlib import Path

import pytest

from dent.errors import InputError
from dent.playground import bundled, images, visitors
from dent.playground.compute import play
from dent.playground.setup import Setup
from dent.playground.streaming import Stopped
from dent.playground.turns import MOST_OF_ADDRESS, MOST_WAITING, Asker, Turn, Turns
from dent.playground.visitors import MOST_FILES, MOST_SESSIONS, Visitors
from dent.playground.visitors import MOST_OF_ADDRESS as MOST_VISITORS
from dent.threat import ThreatModel


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def asked(turns: Turns, number: int, address: str | None = None) -> Turn:
    """Queue a run of a visitor who listens for its results."""
    turns.came(f"session {number}")
    return turns.ask(Asker(f"session {number}", f"visitor {number}", address or f"{number}"))


def test_wait_returns_the_number_of_runs_ahead() -> None:
    turns = Turns()
    first, second, third = (asked(turns, number) for number in range(3))
    assert [turns.wait(turn, 0) for turn in (first, second, third)] == [0, 1, 2]
    first.begin()
    turns.end(second)
    assert turns.wait(third, 0) == 1
    turns.end(first)
    assert turns.wait(third, 0) == 0


def test_visitors_who_leave_do_not_hold_up_the_queue() -> None:
    turns = Turns()
    first, second, third = (asked(turns, number) for number in range(3))
    first.begin()
    turns.left("session 1")
    assert second.is_set()
    assert turns.wait(third, 0) == 1
    turns.left("session 0")
    assert first.is_set()
    assert turns.wait(third, 0) == 1  # the work of the first run has not ended yet
    turns.end(first)
    assert turns.wait(third, 0) == 0


def test_run_stops_only_when_the_last_connection_of_its_session_closes() -> None:
    turns = Turns()
    turn = asked(turns, 0)
    turns.came("session 0")
    turns.left("session 0")
    assert not turn.is_set()
    turns.left("session 0")
    assert turn.is_set()


def test_run_stops_if_its_visitor_never_listens() -> None:
    clock = Clock()
    turns = Turns(clock=clock)
    turn = turns.ask(Asker("s", "v", "a"))
    clock.now += 9
    assert not turn.is_set()
    clock.now += 1
    assert turn.is_set()
    assert turns.wait(asked(turns, 1), 0) == 0


def test_time_limit_of_a_run_counts_from_its_start() -> None:
    clock = Clock()
    turns = Turns(60, clock)
    turn = asked(turns, 0)
    clock.now += 1000
    assert not turn.is_set()
    turn.begin()
    clock.now += 59
    assert (turn.is_set(), turn.overdue) == (False, False)
    clock.now += 1
    assert (turn.is_set(), turn.overdue) == (True, True)


def test_runs_are_limited_per_visitor_per_address_and_in_total() -> None:
    turns = Turns()
    asked(turns, 0, "here")
    with pytest.raises(InputError, match="one run at a time"):
        turns.ask(Asker("another session", "visitor 0", "elsewhere"))
    for number in range(1, MOST_OF_ADDRESS):
        asked(turns, number, "here")
    with pytest.raises(InputError, match="from this address"):
        asked(turns, 100, "here")
    for number in range(MOST_OF_ADDRESS, MOST_WAITING):
        asked(turns, number)
    with pytest.raises(InputError, match=f"{MOST_WAITING} runs are already waiting"):
        asked(turns, 101)
    turns.stop("session 3")
    asked(turns, 101)


@pytest.mark.parametrize("at", [1, 100, 300])
def test_run_stops_at_a_stop_check_inside_the_model(at: int) -> None:
    """A stop does not wait until the defense has predicted, however long that takes."""
    calls = []

    def check() -> None:
        calls.append(None)
        if len(calls) == at:
            raise Stopped

    setup = Setup(ThreatModel("linf", "8/255"), steps=30, batch_size=2)
    with pytest.raises(Stopped):
        play(setup, bundled(images(), 0), check=check)
    assert len(calls) == at


def laid(known: Visitors, name: str, content: str = "") -> Path:
    path = known.cache / f"digest of {name}" / "a.png"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return path


def test_oldest_uploads_are_deleted_beyond_the_maximum_number(tmp_path: Path) -> None:
    known = Visitors(tmp_path)
    all_of_them = [known.welcome(f"{number}") for number in range(MOST_FILES + 1)]
    paths = []
    for number, visitor in enumerate(all_of_them):
        paths.append(laid(known, f"{number}"))
        known.uploaded(visitor, paths[-1])
    assert [path.exists() for path in paths] == [False] + [True] * MOST_FILES
    assert known.may_read(all_of_them[1], paths[1])
    assert not known.may_read(all_of_them[1], paths[2])
    assert not known.may_read(all_of_them[0], paths[0])


def test_files_outside_the_cache_are_never_deleted(tmp_path: Path) -> None:
    known = Visitors(tmp_path / "cache")
    visitor = known.welcome("a")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").touch()
    known.uploaded(visitor, tmp_path / "mine" / "a.png")
    known.uploaded(visitor, tmp_path / "cache" / "x" / "b.png")
    assert (tmp_path / "mine" / "a.png").exists()


def test_known_visitors_are_limited_in_total_and_per_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visitors, "MOST", 100)
    known = Visitors(tmp_path)
    friend = known.welcome("elsewhere")
    assert known.owns(friend, "session")
    flood = [known.welcome("here") for _ in range(1000)]
    assert known.known(friend.token) is friend
    assert sum(known.known(each.token) is not None for each in flood) == MOST_VISITORS
    for number in range(200):
        known.known(friend.token)
        known.welcome(f"{number}")
    assert known.known(friend.token) is friend  # it was used recently
    assert len(known._known) == 100
    assert len({each.token for each in flood}) == 1000
    assert known.known(None) is known.known("guessed") is None


def test_sessions_belong_to_one_visitor_and_are_limited(tmp_path: Path) -> None:
    known = Visitors(tmp_path)
    one, other = known.welcome("a"), known.welcome("a")
    assert known.owns(one, "first")
    assert not known.owns(other, "first")
    for number in range(MOST_SESSIONS):
        assert known.owns(one, f"{number}")
    assert known.of("first") is None
    assert known.of("0") is one
    assert len(one.sessions) == MOST_SESSIONS
