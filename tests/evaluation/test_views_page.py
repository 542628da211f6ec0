"""The tables of docs/evaluation/views.md follow from the journals beside it."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_views_tables_match_the_stored_journals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("views")
    page = (ROOT / "docs/evaluation/views.md").read_text()
    journals = sorted((ROOT / "docs/evaluation/views").glob("*.jsonl"))
    assert journals
    for journal in journals:
        tables = list(module.tables(journal))
        assert tables
        assert all(table in page for table in tables)


def test_halves_are_a_partition_of_the_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    halves = importlib.import_module("views").halves()
    assert sorted(halves["choose"] + halves["claim"]) == list(range(10_000))
