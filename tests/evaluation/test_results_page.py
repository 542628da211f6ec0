"""The table of docs/evaluation/results.md follows from the results beside it."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_results_table_matches_the_stored_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("results")
    lines = list(module.table(module.results()))
    assert len(lines) > 6
    assert "\n".join(lines) in (ROOT / "docs/evaluation/results.md").read_text()
