"""Test the table in docs/paper/what-reproduces.md, which benchmarks/reasons.py makes."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_table_in_the_docs_matches_the_recorded_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("reasons")
    kept = json.loads((ROOT / "docs/paper/reasons.json").read_text())
    for model, changes in kept.items():
        known = [change.says for change in module.CHANGES if change.model == model]
        assert [says for says in known if says in changes] == list(changes)
    lines = module.table(kept)
    assert len(lines) == 2 + sum(1 + len(changes) for changes in kept.values())
    page = (ROOT / "docs/paper/what-reproduces.md").read_text()
    begin, end = importlib.import_module("pages").markers("table")
    inside = page.split(begin)[1].split(end)[0]
    assert inside.strip().splitlines() == lines


def test_first_configuration_changes_no_field_and_uses_batches_of_128(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    first = importlib.import_module("reasons").CHANGES[0]
    assert (dict(first.fields), first.batch_size) == ({}, 128)
