"""tools/audit.py fails on vulnerable direct dependencies, and reports packages it did not check."""

import runpy
from pathlib import Path
from typing import Any

import pytest

TOOL: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "audit.py"))
NAMED = {"torch", "jinja2"}
CLEAN = {"name": "torch", "version": "3.0", "vulns": []}
SKIPPED = {"name": "Jinja2", "skip_reason": "not found"}


def broken(name: str) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1"]}]}


@pytest.mark.parametrize(
    ("packages", "require", "status", "said"),
    [
        ([CLEAN], False, 0, "1 of 1 packages were looked up"),
        ([CLEAN, broken("Jinja2")], False, 1, "Jinja2 1.0 has CVE-1, fixed in 1.1"),
        ([CLEAN, broken("click")], False, 0, "indirect: reported, does not fail"),
        ([CLEAN, SKIPPED], False, 0, "not checked, of those that we name: jinja2"),
        ([CLEAN, SKIPPED], True, 1, "not checked, of those that we name: jinja2"),
        ([SKIPPED], False, 0, "NOT CHECKED"),
        ([SKIPPED], True, 1, "NOT CHECKED"),
        ([], False, 0, "NOT CHECKED"),
    ],
)
def test_audit_result_gives_the_expected_status_and_message(
    packages: list[dict[str, Any]], require: bool, status: int, said: str
) -> None:
    lines, found = TOOL["judge"](packages, NAMED, require=require)
    assert said in "\n".join(lines)
    assert found == status


def test_direct_dependencies_are_those_of_the_project() -> None:
    named = TOOL["direct"]()
    assert {"torch", "safetensors", "robustbench", "ray", "mkdocs-material", "foolbox"} <= named
    assert "torch-dent" not in named
    assert all(name == TOOL["normal"](name) for name in named)
