"""The published runs of the suite on the paper's architecture, and what the page says of them."""

from pathlib import Path

import pytest

from dent.evaluation import load_run, verify
from dent.report import wording

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/paper/resnet-26-4"
PAGE = ROOT / "docs/paper/what-reproduces.md"


@pytest.mark.parametrize(("folder", "name"), [("dentplus", "dent+"), ("dent", "dent")])
def test_the_suite_shows_no_gain_and_the_page_says_what_it_found(folder: str, name: str) -> None:
    checks = {check.name: check for check in verify(FOLDER / folder).checks}
    assert [each for each, check in checks.items() if check.state == "failed"] == []
    for each in ("records", "identity", "seeds", "completeness", "result"):
        assert checks[each].state == "passed"
    run = load_run(FOLDER / folder)
    assert run.run.spec.model.name == "resnet-26-4-linf"
    assert (run.run.spec.samples, len(run.plan.batches)) == (256, 8)
    found, static = run.result.defenses[name], run.result.defenses["static"]
    assert found.verdict is not None
    assert found.verdict.ruling == "no gain"
    assert found.decided is not None
    assert found.decided.after == 0
    page = " ".join(PAGE.read_text().split())
    assert f"{name} gains at most {wording.difference(found.difference)} points" in page
    worst, gain = wording.count(found.worst.served), wording.difference(found.difference)
    line = f"worst case at most {worst}, against static at most {gain} points"
    assert line in str(run.result)
    for count in (found.worst.served, static.worst.served, found.natural, static.natural):
        assert wording.count(count).split()[0] in page


def test_dent_plus_and_the_static_model_have_the_same_worst_case() -> None:
    defenses = load_run(FOLDER / "dentplus").result.defenses
    found, static = (defenses[name].worst.served for name in ("dent+", "static"))
    assert found.correct == static.correct
    assert f"{wording.count(found).split()[0]} worst case for both" in " ".join(
        PAGE.read_text().split()
    )
