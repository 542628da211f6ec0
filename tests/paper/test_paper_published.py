"""Test how runs are published, and that the published page and docs match the records."""

import importlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from dent.cli.app import main
from dent.defenses import CONFIGS
from dent.evaluation import EvaluationResult
from dent.evaluation.records.folder import RESULT
from dent.evaluation.results.recorded_run import RecordedRun
from dent.paper import (
    PaperPlan,
    TableResult,
    load_scale,
    load_table,
    plan_table,
    publish,
    summarize,
    table_names,
)
from dent.paper.counts import count_rulings
from dent.paper.figures import figure, interval, signed
from dent.paper.page import Links, to_page
from dent.paper.planning import RUNS
from dent.paper.spec import TableCell
from dent.storage.errors import RecordError
from tests.paper.conftest import OUT

STATIC = CONFIGS["static"]
DOCS = Path(__file__).parents[2] / "docs/paper"


def test_published_copy_gives_the_same_results_and_holds_no_images(
    finished: PaperPlan, tmp_path: Path
) -> None:
    page = publish([finished], OUT, tmp_path)
    kept = tmp_path / finished.scale.id
    assert page == tmp_path / f"{finished.scale.id}.html"
    assert summarize(finished, kept, said=OUT) == summarize(finished, OUT)
    names = {path.name for path in kept.rglob("*") if path.is_file()}
    assert names == {"run.json", "plan.json", "journal.jsonl"}
    text = page.read_text()
    assert f'href="{finished.scale.id}/{RUNS}/' in text
    assert "tmp" not in text


def test_publishing_again_replaces_the_previous_copy(finished: PaperPlan, tmp_path: Path) -> None:
    page = publish([finished], OUT, tmp_path)
    first, stale = page.read_text(), tmp_path / finished.scale.id / RUNS / "stale"
    stale.mkdir()
    assert publish([finished], OUT, tmp_path).read_text() == first
    assert not stale.exists()


def test_publishing_without_runs_does_not_delete_published_runs(
    finished: PaperPlan, tmp_path: Path
) -> None:
    page = publish([finished], OUT, tmp_path)
    text = page.read_text()
    runs = sorted(path.name for path in (tmp_path / finished.scale.id / RUNS).iterdir())
    with pytest.raises(RecordError, match="would be lost"):
        publish([finished], tmp_path / "elsewhere", tmp_path)
    assert sorted(path.name for path in (tmp_path / finished.scale.id / RUNS).iterdir()) == runs
    assert page.read_text() == text


def test_publishing_from_the_published_copy_keeps_its_runs(
    finished: PaperPlan, tmp_path: Path
) -> None:
    page = publish([finished], OUT, tmp_path)
    kept = tmp_path / finished.scale.id
    runs = sorted(path.name for path in (kept / RUNS).iterdir())
    assert publish([finished], kept, tmp_path) == page
    assert sorted(path.name for path in (kept / RUNS).iterdir()) == runs


def test_no_run_option_publishes_the_page_without_running_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs"
    words = ["dent", "paper", "section43", "--no-run", "--json", "--out", str(out)]
    monkeypatch.setattr("sys.argv", [*words, "--publish", str(tmp_path / "kept")])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    (result,) = json.loads(capsys.readouterr().out)
    assert result["status"] == "not run"
    assert (tmp_path / "kept/cpu.html").is_file()
    assert not list(out.rglob(RESULT))


@pytest.fixture(scope="module")
def published() -> tuple[list[PaperPlan], list[TableResult]]:
    """The plans of all tables, and the results in their published records."""
    plans = [plan_table(load_table(name), load_scale("cpu")) for name in table_names()]
    return plans, [summarize(plan, DOCS / "cpu", said=Path("runs/paper/cpu")) for plan in plans]


def test_published_page_matches_the_published_records(
    published: tuple[list[PaperPlan], list[TableResult]],
) -> None:
    """`dent paper --all --no-run --publish docs/paper` makes the page from `runs/paper/cpu`."""
    plans, results = published
    assert all(result.status != "not run" for result in results)
    page = (DOCS / "cpu.html").read_text()
    for result in results:
        assert f'id="{result.id}"' in page
        for each in result.judgements:
            assert each.ruling in page
    assert to_page(plans, results, Links(DOCS / "cpu", DOCS)) == page


def test_docs_state_the_sums_of_the_recorded_times() -> None:
    """A run of the suite copies records of the static model from another: they count once."""
    seconds: dict[str, dict[str, float]] = {"paper": {}, "suite": {}}
    for journal in (DOCS / "cpu" / RUNS).glob("*/journal.jsonl"):
        kind = journal.parent.name.split("-")[-2]
        for line in map(json.loads, journal.read_text().splitlines()):
            seconds[kind][line["sha256"]] = line["record"]["timing"]["total"]
    paper, suite = (round(sum(seconds[kind].values()) / 60) for kind in ("paper", "suite"))
    text = " ".join((DOCS.parent / "paper.md").read_text().split())
    assert (
        f"add up to {paper} minutes for the published runs of the paper's attacks, and to {suite} "
        "minutes for those of the suite" in text
    )


def test_a_suite_that_stopped_early_gives_upper_bounds(
    published: tuple[list[PaperPlan], list[TableResult]],
) -> None:
    plan, result = next(
        (plan, result)
        for plan, result in zip(*published, strict=True)
        if any(each.difference for each in result.suite)
    )
    page = to_page([plan], [result], Links(DOCS / "cpu", DOCS))
    assert re.search(r'data-label="defended">[^\n]*>at most \d', page)
    assert re.search(r'data-label="against static">[^\n]*>at most [+−0]', page)
    suite = tuple(each.model_copy(update={"decided": None}) for each in result.suite)
    to_its_end = result.model_copy(update={"suite": suite})
    page = to_page([plan], [to_its_end], Links(DOCS / "cpu", DOCS))
    assert '<span class="n">at most ' not in page


def test_docs_have_the_results_of_every_published_suite(
    published: tuple[list[PaperPlan], list[TableResult]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(DOCS.parents[1] / "benchmarks")
    script = importlib.import_module("suites")
    begin, end = importlib.import_module("pages").markers("suites")
    inside = (DOCS.parent / "paper.md").read_text().split(begin)[1].split(end)[0]
    assert inside.strip() == script.table()
    plans, results = published
    suites = {each.run: each for result in results for each in result.suite}
    assert len(suites) == len({run for plan in plans for run in plan.suites.values()})
    rulings = Counter(each.ruling for each in suites.values())
    assert all(each.decided and each.samples == 256 for each in suites.values())
    assert (
        f"verdicts on the {len(suites)} defended configurations: {rulings['no gain']} "
        f"<b>no gain shown</b>, {rulings['harmful']} <b>harmful</b>."
    ) in to_page(plans, results, Links(DOCS / "cpu", DOCS))
    text = " ".join((DOCS / "what-reproduces.md").read_text().split())
    assert (
        f"Of these {len(suites)} runs, {rulings['no gain']} have the verdict *no gain*, and "
        f"{rulings['harmful']} are *harmful*."
    ) in text
    for each in suites.values():
        if each.defense in ("dent+", "dent-nominal"):
            low, high = (signed(100 * end, "%") for end in each.difference.interval)
            gain = signed(100 * each.difference.value, "%")
            assert f"{gain} [{low}, {high}]" in text or f"{gain} points [{low}, {high}]" in text


def test_a_table_with_an_interrupted_suite_is_partial(
    published: tuple[list[PaperPlan], list[TableResult]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = next(
        (plan, result)
        for plan, result in zip(*published, strict=True)
        if plan.suites and result.status == "complete"
    )
    suites = {run.folder for run in plan.suites.values()}
    result_of = RecordedRun.result.func

    def interrupted(recorded: RecordedRun) -> EvaluationResult:
        result: EvaluationResult = result_of(recorded)
        stopped = recorded.path.name in suites
        return result.model_copy(update={"status": "partial"}) if stopped else result

    monkeypatch.setattr(RecordedRun, "result", property(interrupted))
    assert summarize(plan, DOCS / "cpu").status == "partial"


def test_docs_match_the_ranges_of_batch_wise_dent_on_adversarial_training(
    published: tuple[list[PaperPlan], list[TableResult]],
) -> None:
    claimed, found, sources = [], dict[str, list[float]](), dict[str, None]()
    for plan, result in zip(*published, strict=True):
        for each in result.judgements:
            first, *others = (plan.table.cells[key] for key in each.cells)
            if not _is_batch_wise(first) or [cell.defense for cell in others] != [STATIC]:
                continue
            claimed += [] if each.published is None else [each.published]
            sources[result.source.removeprefix("Table ")] = None
            if each.as_in is None and each.measured is not None:
                found.setdefault(each.ruling, []).append(each.measured)
            contains_0 = each.interval is not None and each.interval[0] < 0 < each.interval[1]
            assert contains_0 or each.ruling != "not reproduced"
    assert set(found) == {"not reproduced", "cannot be told"}
    counts = [len(found[ruling]) for ruling in ("not reproduced", "cannot be told")]
    ranges = [
        f"{signed(min(found[ruling]), '%')} to {signed(max(found[ruling]), '%')} points"
        for ruling in ("not reproduced", "cannot be told")
    ]
    said = (
        f"Of these {sum(counts)} comparisons, {counts[0]} are not reproduced ({ranges[0]}, with "
        f"intervals that contain 0), and {counts[1]} cannot be told ({ranges[1]})."
    )
    *tables, last = sorted(sources, key=lambda source: (not source.isdigit(), source.zfill(2)))
    assert last == "Section 4.3"
    text = " ".join((DOCS / "what-reproduces.md").read_text().split())
    assert f"the paper has gains of {min(claimed):.0f} to {max(claimed):.0f} points" in text
    assert f"(Tables {', '.join(tables)}, section 4.3)" in text
    assert said in text


def _is_batch_wise(cell: TableCell) -> bool:
    """Return whether a cell is of dent on an adversarially trained model that is attacked."""
    defense = cell.defense
    adapts = defense.steps > 0 and defense.granularity == "batch" and defense.smoothing is None
    attacked = cell.measure == "robust" and cell.mix is None
    return adapts and attacked and cell.model != "nominal"


def test_docs_match_the_published_records(
    published: tuple[list[PaperPlan], list[TableResult]],
) -> None:
    results = {result.id: result for result in published[1]}
    counts = count_rulings(each for result in results.values() for each in result.judgements)
    text = " ".join((DOCS.parent / "paper.md").read_text().split())
    assert (
        f"{counts['reproduced']} comparisons are reproduced, {counts['not reproduced']} are not, "
        f"{counts['cannot be told']} cannot be told at this sample size, "
        f"{counts['not measured']} are not measured at this scale."
    ) in text
    runs = len([*(DOCS / "cpu" / "runs").glob("*/run.json")])
    assert f"Its {runs} runs are in `paper/cpu/runs`" in text
    short = " ".join((DOCS / "what-reproduces.md").read_text().split())
    assert (
        f"Of {sum(counts.values())} comparisons in the paper, {counts['reproduced']} are "
        f"reproduced, {counts['not reproduced']} are not, {counts['cannot be told']} cannot be "
        f"told at our sample size, and {counts['not measured']} are not measured."
    ) in short
    assert "Every comparison of Tables 2, 6, 9, 10 and 12 that was measured" in short
    for number in (2, 6, 9, 10, 12):
        rulings = {each.ruling for each in results[f"table{number}"].judgements}
        assert rulings <= {"cannot be told", "not measured"}
    table, cells = load_table("table4"), results["table4"].cells
    for row in table.rows:
        found = [
            f"{cell.published}: {figure(cell.value or 0.0, cell.unit)} "
            f"{interval(cell.interval, cell.unit)}"
            for cell in cells
            if cell.row == row.id
        ]
        assert f"| {' | '.join([row.label, *found])} |" in text
