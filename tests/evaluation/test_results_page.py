"""The table of docs/evaluation/results.md follows from the results beside it."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_is_what_the_kept_results_say() -> None:
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks/results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["results"] = module  # where dataclasses look for it
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec.loader.exec_module(module)
    lines = list(module.table())
    assert len(lines) > 6
    assert "\n".join(lines) in (ROOT / "docs/evaluation/results.md").read_text()
