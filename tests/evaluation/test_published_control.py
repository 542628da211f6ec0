"""The published run of the positive control, and what the pages say about it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dent.evaluation import load_run, verify
from dent.report import wording
from dent.storage.canonical import canonical, digest
from dent.storage.errors import RecordError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/evaluation/control"
Place = tuple[str | int, ...]
"""Names of fields and indices, from a record down to a value."""


def test_the_suite_finds_the_gain_of_the_control() -> None:
    checks = {check.name: check for check in verify(FOLDER).checks}
    assert [name for name, check in checks.items() if check.state == "failed"] == []
    for name in ("records", "identity", "seeds", "completeness", "result"):
        assert checks[name].state == "passed"
    defenses = load_run(FOLDER).result.defenses
    static, control = defenses["static"], defenses["dent.evaluation.controls:gain"]
    assert control.verdict is not None
    assert control.verdict.ruling == "robust gain"
    gain = wording.difference(control.difference)
    assert f"with\n{gain} points" in (ROOT / "README.md").read_text()
    page = " ".join((ROOT / "docs/evaluation/suite.md").read_text().split())
    assert f"a difference of {gain} points" in page
    robust = [wording.count(each.worst.served) for each in (control, static)]
    assert f"accuracy is {robust[0]} with the control and {robust[1]} without it" in page


CONTROL = "dent.evaluation.controls:gain"
DESCRIBES = {"dtype"}
"""Fields that only describe a check, so that a verdict does not need them."""


def lines() -> list[dict[str, Any]]:
    """Return the records of the journal."""
    text = (FOLDER / "journal.jsonl").read_text()
    return [json.loads(line)["record"] for line in text.splitlines()]


def names_in(record: dict[str, Any], above: tuple[str | int, ...] = ()) -> Iterator[Place]:
    """Yield where the record has values: the names of the fields down to each."""
    for name, value in record.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from names_in(value, (*above, name))
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield from names_in(value[0], (*above, name, 0))


def checks_of_the_control() -> list[tuple[str, Place]]:
    """Return every field of its probe and its certificate that has a value."""
    return [
        (record["kind"], name)
        for record in lines()
        if record["kind"] in ("probe", "certificate") and record["defense"] == CONTROL
        for name in names_in(record)
        if name[0] != "timing" and value_at(record, name) is not None
    ]


def value_at(record: Any, name: Place) -> Any:
    """Return the value of a field."""
    for each in name:
        record = record[each]
    return record


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(*each, id=".".join(map(str, (each[0], *each[1]))))
        for each in checks_of_the_control()
    ],
)
def test_without_one_value_of_its_checks_there_is_no_gain(
    kind: str, name: Place, tmp_path: Path
) -> None:
    for file in ("plan.json", "run.json"):
        shutil.copy(FOLDER / file, tmp_path)
    records = lines()
    (changed,) = (each for each in records if (each["kind"], each["defense"]) == (kind, CONTROL))
    value_at(changed, name[:-1])[name[-1]] = None
    journal = [canonical({"record": each, "sha256": digest(each)}) for each in records]
    (tmp_path / "journal.jsonl").write_text("".join(f"{line}\n" for line in journal))
    try:
        verdict = load_run(tmp_path).result.defenses[CONTROL].verdict
    except RecordError:
        return
    assert verdict is not None
    assert (verdict.ruling == "robust gain") == (name[-1] in DESCRIBES)
