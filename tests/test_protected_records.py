"""A report or page never replaces a record of a run."""

from pathlib import Path
from typing import Any

import pytest

from dent.board.page import write_page as write_board_page
from dent.board.row_folder import ROW
from dent.board.submission import SUBMISSION
from dent.board.trust import TRUST
from dent.errors import ConfigError
from dent.evaluation.records.folder import PLAN, RESULT, RUN
from dent.evaluation.records.journal import CHALLENGES, JOURNAL
from dent.evaluation.records.schema import TENSORS
from dent.evaluation.records.sweep import SWEEP
from dent.paper.page import write_page as write_paper_page
from dent.paper.profile import PROFILE
from dent.report import write_report
from dent.storage.lock import HOLDER, LOCK
from dent.storage.protected import refuse_record
from dent.training.card import CARD
from dent.training.loop import METRICS
from tests.cli.here import dent

NAMES = (
    *(RUN, PLAN, JOURNAL, RESULT, SWEEP, ROW, SUBMISSION, TRUST, CHALLENGES, LOCK, HOLDER),
    *(PROFILE, CARD, METRICS),
    *(f"{TENSORS}/0.safetensors", f"{TENSORS}/new.html"),
)
COMMANDS: dict[str, Any] = {
    "report": lambda out: ("report", str(out.parent), "-o", str(out)),
    "paper": lambda out: ("paper", "table4", "--no-run", "--report", str(out)),
    "board page": lambda out: ("board", "page", str(out.parent), "-o", str(out)),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / TENSORS).mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_text("a record")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", NAMES)
def test_commands_refuse_to_replace_a_record(command: str, name: str, run: Path) -> None:
    ran = dent(*COMMANDS[command](run / name))
    assert ran.code == 2
    assert "is not written" in ran.err
    assert "Choose another name or folder" in ran.err
    assert {path.read_text() for path in run.rglob("*") if path.is_file()} == {"a record"}


@pytest.mark.parametrize("owner", [RUN, SWEEP, ROW, PROFILE])
def test_functions_refuse_to_replace_a_record(owner: str, tmp_path: Path) -> None:
    (tmp_path / owner).write_text("a record")
    out = tmp_path / "result.json"
    with pytest.raises(ConfigError, match="has the records of a run"):
        write_report([tmp_path], out)
    with pytest.raises(ConfigError, match="has the records of a run"):
        write_board_page([], out)
    with pytest.raises(ConfigError, match="has the records of a run"):
        write_paper_page([], [], tmp_path, out)
    assert not out.exists()


def test_other_names_and_other_folders_are_allowed(run: Path, tmp_path: Path) -> None:
    refuse_record(run / "report.html")
    refuse_record(tmp_path / "result.json")
    refuse_record(tmp_path / TENSORS / "report.html")
    (tmp_path / "link").symlink_to(run, target_is_directory=True)
    with pytest.raises(ConfigError):
        refuse_record(tmp_path / "link" / RESULT)
