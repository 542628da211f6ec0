"""The tables of docs/evaluation/strength.md follow from the journals beside it."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from dent.evaluation import load_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def strength(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the benchmark as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("strength")


def test_strength_tables_match_the_stored_journals(strength: ModuleType) -> None:
    page = (ROOT / "docs/evaluation/strength.md").read_text()
    journals = sorted((ROOT / "docs/evaluation/strength").glob("*.jsonl"))
    assert journals
    for journal in journals:
        table = "\n".join(strength.table(journal))
        assert table.count("\n") > 2
        assert table in page


def test_groups_count_the_worst_case_by_image_and_by_whole_batch(
    strength: ModuleType, tmp_path: Path
) -> None:
    lines = [
        {"attack": "small/a", "first": 0, "seconds": 1.0, "right": [True, False, True, True]},
        {"attack": "small/b", "first": 0, "seconds": 2.0, "right": [False, True, True, True]},
        {"attack": "small/b", "first": 4, "seconds": 8.0, "right": [False] * 4},  # not in both
        {"attack": "pool/a", "first": 0, "seconds": 4.0, "right": [False, False, False, True]},
    ]
    journal = tmp_path / "dent+.jsonl"
    torn = '\n{"attack": "small/a", "fir'
    journal.write_text("\n".join(json.dumps(line) for line in lines) + torn)
    rows = [line.split(" | ")[:4] for line in strength.table(journal)][2:]
    kept = [line.split(" | ")[4].split(" ")[0] for line in strength.table(journal)][2:]
    assert rows == [
        ["| small/a", "4", "1", "75.0%"],
        ["| small/b", "8", "10", "37.5%"],
        ["| **small, all**", "4", "3", "50.0%"],
        ["| pool/a", "4", "4", "25.0%"],
    ]
    assert kept == ["75.0%", "37.5%", "75.0%", "25.0%"]


def test_a_run_continues_after_a_line_that_was_cut_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    journal = importlib.import_module("journal")
    path = tmp_path / "new/a.jsonl"
    journal.append(path, {"first": 0})
    path.write_bytes(path.read_bytes() + b'{"fir')
    journal.append(path, {"first": 32})
    assert list(journal.records(path)) == [{"first": 0}, {"first": 32}]


def test_the_suite_is_taken_from_a_run_with_the_worst_case_of_its_result(
    strength: ModuleType, tmp_path: Path
) -> None:
    run = ROOT / "docs/paper/resnet-26-4/dentplus"
    journal = tmp_path / "dent+.jsonl"
    strength.take(journal, run, 64)
    strength.take(journal, run, 256)
    taken = journal.read_text()
    strength.take(journal, run, 256)
    assert journal.read_text() == taken
    assert len(set(taken.splitlines())) == len(taken.splitlines())
    (row,) = list(strength.table(journal))[2:]
    worst = load_run(run).result.defenses["dent+"].worst.served
    assert row.startswith("| **suite, all** | 256 | ")
    assert f" | {100 * worst.share:.1f}% [" in row


@pytest.mark.parametrize(
    ("name", "run", "why"),
    [
        ("dent.evaluation.controls:gain", "docs/evaluation/control", "other images"),
        ("dent-10", "docs/paper/resnet-26-4/dentplus", "no defense"),
    ],
)
def test_a_run_with_other_batches_or_defenses_is_refused(
    strength: ModuleType, tmp_path: Path, name: str, run: str, why: str
) -> None:
    with pytest.raises(SystemExit, match=why):
        strength.take(tmp_path / f"{name}.jsonl", ROOT / run, 64)
    assert not list(tmp_path.iterdir())


def test_a_page_without_the_markers_is_refused_and_unchanged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    pages = importlib.import_module("pages")
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x: begin -->\nold\n<!-- x: end -->\nz\n")
    pages.write_between(page, "x", ["one", "two"])
    written = "a\n<!-- x: begin -->\n\none\n\ntwo\n\n<!-- x: end -->\nz\n"
    assert page.read_text() == written
    with pytest.raises(ValueError, match="unpack"):
        pages.write_between(page, "y", ["one"])
    assert page.read_text() == written
