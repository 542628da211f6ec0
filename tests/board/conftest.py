"""Fixture that adds the toy track to the known tracks."""

from collections.abc import Callable

import pytest

from dent.board import tracks
from dent.board.tracks import Track
from tests.board.toys import toy

Put = Callable[[Track], None]


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Put:
    """Return a function that adds a track to the known tracks; the toy track is already added."""

    def put_track(track: Track) -> None:
        known = {**tracks.tracks(), track.name: track}
        monkeypatch.setattr(tracks, "tracks", lambda: known)

    put_track(toy())
    return put_track
