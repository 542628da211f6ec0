"""SIGKILL at any moment loses only the current unit, and a resumed run ends with equal records."""

import json
import subprocess
import sys
from pathlib import Path

from dent.evaluation import load_run
from dent.evaluation.records.journal import JOURNAL
from dent.evaluation.records.schema import UnitRecord
from dent.storage.canonical import without_timing
from tests.evaluation.kill_harness import RANDOM_KILLS


def read(folder: Path) -> tuple[list[object], dict[str, bytes], object, bytes]:
    """Return the content of a run without its times and sessions."""
    recorded = load_run(folder)
    lines = (folder / JOURNAL).read_text().splitlines()
    result = without_timing(recorded.result.to_json())
    result.pop("sessions")
    tensors = {item.name: item.read_bytes() for item in (folder / "adversarial").iterdir()}
    kept = {r.tensor.file.split("/")[1] for r in recorded.units() if r.tensor is not None}
    assert kept == set(tensors)
    assert all(isinstance(r, UnitRecord) for r in recorded.units())
    assert not list(folder.rglob(".tmp-*"))
    records = [without_timing(json.loads(line)["record"]) for line in lines]
    return records, tensors, result, (folder / "plan.json").read_bytes()


def test_killed_and_resumed_runs_equal_an_uninterrupted_run(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.evaluation.kill_harness", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    reports = [json.loads(line) for line in ran.stdout.splitlines()]
    whole = read(Path(reports[0]["folder"]))
    assert len(whole[0]) == 20
    random = sum(r["kills"] for r in reports if "random-" in r["folder"])
    exact = sum(r["kills"] for r in reports if "call-" in r["folder"])
    assert random >= RANDOM_KILLS
    assert exact >= 11
    for report in reports[1:]:
        assert read(Path(report["folder"])) == whole, report
