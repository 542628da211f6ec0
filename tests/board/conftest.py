"""The toy track among the others."""

from collections.abc import Callable

import pytest

from dent.board import tracks
from dent.board.tracks import Track
from tests.board.toys import toy

Put = Callable[[Track], None]


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Put:
    """Put a track among the others."""

    def put_track(track: Track) -> None:
        known = {**tracks.tracks(), track.name: track}
        monkeypatch.setattr(tracks, "tracks", lambda: known)

    put_track(toy())
    return put_track
