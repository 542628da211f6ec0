"""The published runs of the suite on the paper's architecture, and what the page says of them."""

from pathlib import Path

from dent.evaluation import load_run, verify
from dent.report import wording

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/paper/resnet-26-4"


def test_the_difference_of_dent_plus_vanishes_under_the_suite() -> None:
    checks = {check.name: check for check in verify(FOLDER / "dentplus").checks}
    assert [name for name, check in checks.items() if check.state == "failed"] == []
    for name in ("records", "identity", "seeds", "completeness", "result"):
        assert checks[name].state == "passed"
    run = load_run(FOLDER / "dentplus")
    assert run.run.spec.model.name == "resnet-26-4-linf"
    assert (run.run.spec.samples, len(run.plan.batches)) == (256, 8)
    found, static = run.result.defenses["dent+"], run.result.defenses["static"]
    assert found.verdict is not None
    assert found.verdict.ruling == "no gain"
    assert found.decided is not None
    assert found.decided.after == 0
    page = " ".join((ROOT / "docs/paper/what-reproduces.md").read_text().split())
    assert f"gains at most {wording.difference(found.difference)} points" in page
    assert found.worst.served.correct == static.worst.served.correct
    assert f"{wording.count(found.worst.served).split()[0]} worst case for both" in page
    worst, gain = wording.count(found.worst.served), wording.difference(found.difference)
    line = f"worst case at most {worst}, against static at most {gain} points"
    assert line in str(run.result)
