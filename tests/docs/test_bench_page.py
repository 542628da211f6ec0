"""The page of the published benchmark matches its figures, with rows in a readable order."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs/bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("bench")


@pytest.fixture
def record() -> Any:
    return json.loads((PUBLISHED / "bench.json").read_text())


def test_the_benchmark_page_matches_its_figures(bench: ModuleType, record: Any) -> None:
    assert bench.page(record) == (PUBLISHED / "index.html").read_text()


def test_rows_are_grouped_by_defense_and_sorted_by_steps(bench: ModuleType, record: Any) -> None:
    for figures in record["cost"]["cells"].values():
        rows = bench.in_order(figures)
        assert sorted(map(str, rows)) == sorted(map(str, figures.values()))
        assert rows[0]["what"] == "static"
        kinds = [bench._named(row["what"]) for row in rows]
        defenses = [name for name, _ in kinds]
        assert defenses == sorted(defenses, key=defenses.index)  # grouped by defense
        for name in set(defenses):
            steps = [count for defense, count in kinds if defense == name]
            assert steps == sorted(steps)


def test_shares_of_time_have_the_rows_and_kinds_that_the_script_writes(
    bench: ModuleType, record: Any
) -> None:
    where = importlib.import_module("where")
    settings = ("default", "compiled", "compiled bfloat16")
    assert [*record["where"]] == [f"{what}, {each}" for what in where.CONFIGS for each in settings]
    for shares in record["where"].values():
        assert set(shares) <= {*where.KINDS, "everything else"}
        assert sum(shares.values()) == pytest.approx(1)
