"""Test that docs/reference/command-line.md names every command and every key of `--json`."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from dent.attacks import make_from
from dent.board.pack import Manifest, PackedFile
from dent.board.submission import FileOnline, KnownAttack, RowSubmission
from dent.board.tracks import Track, Variant
from dent.board.verification import RowCheck
from dent.data import FetchResult
from dent.distributed import Merged
from dent.evaluation import (
    ChallengeSummary,
    Check,
    Count,
    DefenseResult,
    EvaluationResult,
    Verification,
)
from dent.models import ModelInfo
from dent.paper import CellResult, Judgement, SuiteResult, TableResult
from dent.report import DefenseStory, RunSummary, SampleStory, StoryAnswer
from dent.report.listing import DefenseLine
from dent.serving.limits import Limits
from dent.serving.options import ServerOptions
from tests.cli.here import commands

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "command-line.md").read_text()
PAGES = {
    "evaluate": [EvaluationResult, DefenseResult, Count],
    "list": [RunSummary, DefenseLine],
    "show --sample": [SampleStory, DefenseStory, StoryAnswer],
    "merge": [Merged],
    "verify": [Verification, Check],
    "challenge": [ChallengeSummary],
    "data": [FetchResult],
    "models": [ModelInfo],
    "serve": [ServerOptions, Limits],
    "board tracks": [Track, Variant],
    "board submit": [RowSubmission, FileOnline, KnownAttack],
    "board check": [RowCheck, Check],
    "pack": [Manifest, PackedFile],
    "paper": [TableResult, CellResult, Judgement, SuiteResult],
}


def paragraph(command: str) -> set[str]:
    """Return the names in backticks in the page's paragraph about the JSON of a command."""
    _, _, text = PAGE.partition("## JSON")
    (found,) = re.findall(rf"\*\*`{command}`.*?\*\*:(.*?)(?=\*\*`|\Z)", text, re.DOTALL)
    return set(re.findall(r"`([a-z_][a-z_0-9]*)`", found))


@pytest.mark.parametrize("command", PAGES)
def test_every_json_key_is_documented(command: str) -> None:
    for kind in PAGES[command]:
        known = getattr(kind, "model_fields", None) or [field.name for field in fields(kind)]
        assert set(known) <= paragraph(command), kind.__name__


def test_every_command_is_documented_and_has_a_json_option() -> None:
    for name, command in commands().items():
        assert f"dent {name}" in PAGE, name
        assert any("--json" in option.opts for option in command.params), name


def test_every_attack_example_on_the_page_can_be_constructed() -> None:
    written = re.findall(r"--attack ([^\s`]+)", PAGE)
    assert written.pop() == "package.module:factory"
    assert len(written) == 7
    assert [make_from(text).name for text in written] == written
    assert make_from(written[2]).settings() == make_from(written[3]).settings()
