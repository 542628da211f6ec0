"""A command whose output nobody reads any more ends quietly, with a status of its own."""

import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import TextIO

import pytest

from dent.cli import app
from dent.cli.console import OUT
from tests.cli.here import dent


@pytest.fixture
def closed() -> Iterator[TextIO]:
    """A pipe whose reader has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        yield file


@pytest.mark.parametrize("arguments", ["--help", "models --help", "models", "models --json"])
def test_a_command_ends_with_141_if_its_reader_has_ended(
    arguments: str,
    closed: TextIO,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["dent", *arguments.split()])
    monkeypatch.setattr(OUT, "quiet", OUT.quiet)  # rich silences the console of a closed pipe
    with redirect_stdout(closed), pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code == 141
    assert capsys.readouterr().err == ""


def test_a_broken_connection_of_user_code_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaks_its_pipe.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Flatten):\n"
        "    def forward(self, x):\n"
        "        raise BrokenPipeError(32, 'Broken pipe')\n"
        "def model():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))\n"
        "def defense(model):\n"
        "    return Net()\n"
    )
    monkeypatch.chdir(tmp_path)
    chosen = ("--model", "breaks_its_pipe:model", "--defense", "breaks_its_pipe:defense")
    ran = dent("evaluate", *chosen, "--n", "2", "--device", "cpu", "--out", "run")
    assert ran.code == 2
    assert "BrokenPipeError" in ran.err
    assert "raised at breaks_its_pipe.py, line 4, in forward" in ran.err
