"""What every format says of a run that stopped early, and of attacks that left out members."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dent.cli.console import OUT
from dent.cli.output.result import show_result
from dent.cli.output.runs import show_run
from dent.evaluation import EvaluationResult
from dent.evaluation.results.recorded_run import RecordedRun, load_run
from dent.evaluation.results.result import ChallengeSummary, Decision, WorstCase
from dent.report import figure, list_runs, wording, write_report
from dent.report.flags import of_one
from dent.report.formats import to_csv
from dent.report.headline import headline
from dent.report.limits import limits
from dent.report.loading import NamedRun
from dent.report.markdown import to_markdown
from dent.report.plots import own_curve, success_chart, traces
from dent.support import ranges

WORST, GAIN = "at most 41.2% [38.2, 44.3]", "at most +0.4 [−1.2, +2.0]"
STOPPED = (
    "The run stopped early, because a gain can no longer be shown (dent+: after 8 of 18 attacks on "
    "it). There, worst case and difference are upper bounds."
)
NOT_RUN = (
    "Not run, because the run stopped: square, eot, adaptive-bpda, fpa, gmsa-avg, "
    "adaptive-stop-gradient, adaptive-truncated, fab-t, adaptive-unrolled, rays."
)


@pytest.fixture(scope="module")
def loaded(stopped_run: Path) -> RecordedRun:
    return load_run(stopped_run)


@pytest.fixture(scope="module")
def stopped(loaded: RecordedRun) -> EvaluationResult:
    return loaded.result


@pytest.fixture(scope="module")
def markdown(loaded: RecordedRun) -> str:
    return to_markdown([NamedRun("dent+", loaded)])


@pytest.fixture(scope="module")
def page(stopped_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = write_report([stopped_run], tmp_path_factory.mktemp("page") / "r.html")
    return out.read_text(encoding="utf-8")


def with_dent(result: EvaluationResult, **changes: Any) -> EvaluationResult:
    changed = result.defenses["dent+"].model_copy(update=changes)
    return result.model_copy(update={"defenses": {**result.defenses, "dent+": changed}})


def test_headline_marks_worst_case_and_difference_as_upper_bounds(
    stopped: EvaluationResult,
) -> None:
    table = headline(stopped)
    cells = table.row("dent+").cells
    assert (cells["worst"].full, cells["difference"].full) == (WORST, GAIN)
    assert {key for key, cell in cells.items() if cell.bound} == {"worst", "difference"}
    assert not any(cell.bound for cell in table.row("static").cells.values())


def test_every_format_says_at_most(
    stopped: EvaluationResult, markdown: str, page: str, tmp_path: Path
) -> None:
    with OUT.capture() as captured:
        show_result(stopped, "run")
    terminal = captured.get()
    plain = " ".join(re.sub("<[^>]+>", "", page).split())
    for text in (WORST, GAIN):
        assert text in re.sub(r" \[.\]", "", markdown)
    assert '<span class="n">at most 41.2%</span>' in page
    assert '<span class="unit">at most </span>+0.4' in page
    assert "41.2%" in terminal
    assert "at most" in terminal
    drawn = figure(stopped, tmp_path / "r.svg").read_text(encoding="utf-8")
    assert "at most 41.2%" in drawn
    assert "<!-- worst case, at most -->" in drawn
    assert "<!-- 41.2%" not in drawn
    assert limits(stopped)[0] == STOPPED
    for text in (plain, " ".join(terminal.split()), markdown.replace("\\", "")):
        assert STOPPED in text


def test_a_run_that_went_to_its_end_has_no_upper_bounds(
    stopped: EvaluationResult, tmp_path: Path
) -> None:
    ended = with_dent(stopped, decided=None)
    assert headline(ended).row("dent+").cells["worst"].full == WORST.removeprefix("at most ")
    assert "stopped early" not in " ".join(limits(ended))
    assert "at most" not in figure(ended, tmp_path / "r.svg").read_text(encoding="utf-8")


def test_transfers_alone_are_told_from_attacks(stopped: EvaluationResult) -> None:
    decided = Decision(after=0, of=18, at_most=0.0, below=False)
    said = limits(with_dent(stopped, decided=decided))[0]
    assert "(dent+: after transfers, with 0 of 18 attacks on it complete)" in said


def test_csv_says_after_how_many_attacks_the_run_stopped(loaded: RecordedRun) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv([NamedRun("it", loaded)]))))
    assert {row["stopped_after"] for row in rows if row["defense"] == "dent+"} == {"8"}
    assert {row["stopped_after"] for row in rows if row["defense"] == "static"} == {""}
    left_out = {row["attack"]: row["carried"] for row in rows if row["measure"] == "attack"}
    assert left_out["rays"] == "0"
    static = [row for row in rows if (row["defense"], row["attack"]) == ("static", "apgd-ce")]
    assert [row["carried"] for row in static if row["measure"] == "attack"] == ["568"]


def test_list_calls_an_interrupted_process_of_a_stopped_run_complete(stopped_run: Path) -> None:
    assert json.loads((stopped_run / "run.json").read_text())["status"] == "interrupted"
    (summary,) = list_runs(stopped_run)
    assert summary.status == "complete"
    with OUT.capture() as captured:
        show_run(summary)
    told = captured.get()
    assert "complete (stopped early, 315/476)" in told
    assert f"worst case {WORST}, against static {GAIN}: no gain" in told


def test_foot_of_the_page_says_that_the_run_stopped_early(page: str) -> None:
    assert re.search(r"315 of 476 units, schema version \d, stopped early</td>", page)
    assert "interrupted" in page.partition("Sessions:")[2]  # of the session


def test_attacks_that_did_not_run_are_named_once_and_have_no_row(
    page: str, markdown: str, stopped: EvaluationResult
) -> None:
    plain = " ".join(re.sub("<[^>]+>", "", page).split())
    assert f"dent+: {NOT_RUN}" in plain
    assert NOT_RUN in markdown.replace("\\", "")
    for text in (page, markdown.replace("\\", "")):
        assert "adaptive-bpda through the defense" not in text
        assert "not scored" not in text
    named = [what for what, _ in traces(stopped, "dent+")]
    assert [what for what in named if "assembled" in what] == [
        "assembled from the images that broke each member, after surrogates"
    ]
    assert not any("eot" in what for what in named)
    assert not wording.not_run(stopped, "static")
    waiting = with_dent(stopped, decided=None).model_copy(update={"status": "partial"})
    assert wording.not_run(waiting, "dent+").startswith("Not run yet: square, ")


def test_equal_deciders_of_the_worst_case_are_summed(stopped: EvaluationResult) -> None:
    found = stopped.defenses["dent+"]
    assert wording.deciders(found, "dent+") == {
        "assembled from the images that broke each member": 3,
        "adaptive-transfer transferred from static": 5,
    }
    by = WorstCase(served=found.worst.served, unit="sample", by={"attack/apgd-ce": 2})
    on_static = found.model_copy(update={"worst": by})
    assert wording.deciders(on_static, "static") == {"apgd-ce on the model": 2}


def test_attacks_that_left_out_members_are_marked(
    stopped: EvaluationResult, page: str, markdown: str
) -> None:
    assert wording.carried(stopped).startswith("On static, an attack leaves out members")
    assert wording.carried(stopped) in " ".join(page.split())
    assert wording.carried(stopped) in markdown.replace("\\", "")
    apgd = stopped.defenses["static"].attack("apgd-ce")
    # 568 members had fallen before, and 598 have after it.
    assert wording.attacked_and_broken(apgd) == "456, 30"
    assert re.search(r'data-label="Attacked, broken">456, 30<', page)
    plain = re.sub(r" \[[a-z,]+\]", "", markdown)
    assert "| apgd-ce on the model | 41.6% [38.6, 44.6] | 456, 30 |" in plain
    with OUT.capture() as captured:
        show_result(stopped, "run")
    told = captured.get()
    assert "41.6% *" in told
    assert "* On static, an attack leaves out" in " ".join(told.split())


def test_progress_of_an_attack_is_over_the_members_that_it_attacked(
    stopped: EvaluationResult,
) -> None:
    static = stopped.defenses["static"]
    curve = own_curve(static.attack("apgd-ce"))
    assert curve is not None
    assert (curve.broken[0], curve.broken[-1], curve.total) == (0, 30, 456)
    chart = success_chart(stopped, "static", of_one(stopped))
    assert chart is not None
    by_name = {line.curve.name: line.curve.values for line in chart.lines}
    assert by_name["apgd-ce"][-1].text.startswith("30 of 456 broken")
    everything = static.attack("apgd-ce").model_copy(update={"carried": 1024})
    assert own_curve(everything) is None


def test_a_run_without_a_finished_batch_has_nothing_to_compare(
    stopped: EvaluationResult,
) -> None:
    found = stopped.defenses["dent+"]
    assert found.difference is not None
    assert found.verdict is not None
    nothing = {"value": None, "interval": None, "total": 0}
    assert wording.READINGS[wording.reading(None)] == "nothing to compare yet"
    verdict = found.verdict.model_copy(
        update={"natural": found.verdict.natural.model_copy(update=nothing)}
    )
    said = wording.verdict(verdict)
    assert said[1] == "Clean accuracy against static: nothing to compare yet."
    assert wording.verdict(found.verdict)[1].endswith("] points.")


def test_lowered_worst_case_of_a_stopped_run_is_called_an_upper_bound() -> None:
    entry = ChallengeSummary(
        by="Ann",
        url=None,
        note=None,
        date="2026-11-30T00:00:00Z",
        digest="0" * 64,
        made_for="dent+",
        attack=None,
        correct=610,
        total=1024,
        lowered=8,
    )
    decided = Decision(after=0, of=18, at_most=0.0, below=False)
    assert wording.challenged(entry, decided) == (
        "Lowered by Ann (2026-11-30): 610 of 1024 samples still correct, and the worst case, an "
        "upper bound because the run stopped early, fell by 8 samples."
    )
    assert wording.challenged(entry, None).endswith(
        "still correct, and the worst case fell by 8 samples."
    )


def test_images_that_are_not_shipped_are_a_quiet_note(page: str) -> None:
    said = "These records come without the adversarial images, so only natural ones are shown."
    assert f'<p class="note">{said}</p>' in page
    assert "are missing: board" not in page
    assert "Adversarial images of" not in page


def test_attacks_with_one_protocol_name_it_once(stopped: EvaluationResult) -> None:
    said = wording.attacks(stopped.spec)
    assert said.startswith("adaptive-transfer, zero-update, ")
    assert said.endswith(", rays (all frozen)")
    one = stopped.spec.model_copy(update={"attacks": stopped.spec.attacks[:1]})
    assert wording.attacks(one) == "adaptive-transfer (frozen)"
    none = stopped.spec.model_copy(update={"attacks": ()})
    assert wording.attacks(none) == "none"


def test_methods_of_intervals_are_named_in_full(stopped: EvaluationResult) -> None:
    difference = stopped.defenses["dent+"].difference
    assert difference is not None
    assert wording.interval_of(difference, None).startswith(
        "Interval: the widest of Tango's score interval for paired samples, a bootstrap over "
        "batches, and Student's t on batch means. It assumes that batches are independent;"
    )
    plain = difference.model_copy(update={"method": "tango", "assumes": "that samples are"})
    assert wording.interval_of(plain, None).startswith(
        "Interval: Tango's score interval for paired"
    )
    other = plain.model_copy(update={"method": "another"})
    assert wording.interval_of(other, None) == "Interval: another. It assumes that samples are."


def test_few_marks_are_tab_stops_and_ids_are_ranges(page: str, stopped: EvaluationResult) -> None:
    marks = re.findall(r'<a href="#flag-\w"[^>]*>', page)
    reachable = [mark for mark in marks if "tabindex" not in mark]
    assert len(marks) > 100
    assert len(reachable) < 10
    ids = stopped.spec.settings.ids
    assert ids is not None
    every = ", ".join(map(str, ids))
    assert every not in page.partition("The full specification as JSON")[0]
    assert ranges.written(ids) in page


def test_page_of_one_run_begins_with_links_to_its_sections(page: str) -> None:
    contents = page.partition('<nav class="contents"')[2].partition("</nav>")[0]
    linked = re.findall(r'href="#([^"]+)">([^<]+)<', contents)
    assert len(linked) == 10
    for anchor, text in linked:
        assert re.search(rf'<h2 id="{anchor}">{text}</h2>', page), anchor
