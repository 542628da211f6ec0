"""Test `starting`, which protects the token and the SIGTERM handler while Ray starts."""

import os
import signal
from pathlib import Path

import pytest

from dent.support.ray_start import starting


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_auth_token_is_readable_only_by_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool, there: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    token = tmp_path / ".ray" / "auth_token"
    if named:
        token = tmp_path / "elsewhere" / "token"
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    token.parent.mkdir()
    before = os.umask(0o022)
    try:
        if there:
            token.touch()
        with starting():
            if not there:
                token.write_text("made by Ray")
                assert token.stat().st_mode & 0o077 == 0
        (tmp_path / "after").touch()
    finally:
        assert os.umask(before) == 0o022
    assert token.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "after").stat().st_mode & 0o777 == 0o644


def test_starting_without_a_token_restores_sigterm_and_writes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        mine = signal.getsignal(signal.SIGTERM)
        with starting():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(tmp_path.iterdir()) == []
