"""The published run of the positive control, and what the pages say about it."""

from pathlib import Path

from dent.evaluation import load_run, verify
from dent.report import wording

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/evaluation/control"


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
