"""The published JSON schema matches the code, and records of older versions stay readable."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dent.evaluation import EvaluationResult, load_run, verify
from dent.storage.canonical import without_rulings, without_wording
from tools.json_schema import FILES, of_records, texts

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"


def test_schema_in_the_docs_is_up_to_date() -> None:
    written = (ROOT / "docs" / "reference" / "record.schema.json").read_text()
    assert written == texts()["record.schema.json"], (
        "run `python tools/json_schema.py`, and say in CHANGELOG what changed in the records"
    )


def properties(name: str, node: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    """Return [name] if the definition of an object allows unknown keys, otherwise []."""
    del definitions
    closed = node.get("additionalProperties") is False
    return [] if closed or node.get("type") != "object" else [name]


def test_no_record_allows_unknown_keys() -> None:
    definitions = of_records()["$defs"]
    open_ones = [
        key for name, node in definitions.items() for key in properties(name, node, definitions)
    ]
    assert open_ones == []
    assert set(of_records()["files"]) == set(FILES)


@pytest.mark.parametrize("version", sorted(path.name for path in GOLDEN.glob("v*")))
def test_golden_runs_of_older_versions_give_the_same_result_today(version: str) -> None:
    recorded = load_run(GOLDEN / version)
    text = (GOLDEN / version / "result.json").read_text()
    written = EvaluationResult.model_validate_json(text)  # newer fields have defaults
    now, then = (without_wording(each.to_json()) for each in (recorded.result, written))
    assert without_rulings(now) == without_rulings(then)
    # The same diagnostics are raised today, even if the rules changed.
    for name, found in written.defenses.items():
        raised = {flag.name for flag in recorded.result.defenses[name].raised}
        assert {flag.name for flag in found.raised} == raised
    assert verify(GOLDEN / version).problems == ()
    for record in recorded.units():
        if record.kind == "attack":
            assert len(recorded.adversarial(record)) == len(record.claimed or ())


def test_there_is_a_golden_run() -> None:
    assert (GOLDEN / "v1").is_dir()


def test_unit_record_schema_has_the_golden_keys_and_its_new_keys_are_optional(
    tmp_path: Path,
) -> None:
    shutil.copytree(GOLDEN / "v1", tmp_path / "v1")
    line = json.loads((tmp_path / "v1" / "journal.jsonl").read_text().splitlines()[-1])
    definition = of_records()["$defs"]["UnitRecord"]["properties"]
    assert set(line["record"]) <= set(definition)
    assert all("default" in definition[key] for key in set(definition) - set(line["record"]))


@pytest.mark.slow
def test_published_runs_load_and_are_complete() -> None:
    folders = [path.parent for path in (ROOT / "docs/paper/cpu/runs").rglob("run.json")]
    assert len(folders) > 100
    for folder in folders:
        found = load_run(folder)
        assert found.result.status == "complete", folder
        assert found.result.rules > 1
