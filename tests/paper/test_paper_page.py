"""Test the page about the paper's tables, and the command `dent paper` that makes it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from dent.cli.app import main
from dent.cli.console import OUT as CONSOLE
from dent.cli.output.paper_costs import forwards_in_words
from dent.evaluation.records.folder import RESULT
from dent.paper import (
    PaperPlan,
    load_scale,
    load_table,
    plan_table,
    run_plans,
    summarize,
    table_names,
    write_page,
)
from dent.paper.labels import label, label_of
from dent.paper.page import Links, to_page
from dent.paper.planning import RUNS
from dent.paper.runner import REPORT, Loader
from tests.paper.conftest import NO_SUITE, OUT, TABLE, MakePlan
from tests.report.browser import Question, ask, needs_chromium

FACTS = """
const all = (css) => [...doc.querySelectorAll(css)];
const said = (node) => node.textContent.replace(/\\s+/g, " ").trim();
return {
  title: doc.title, back: all("section.run").every((part) =>
    part.querySelector(".back a[href='#contents']")?.getBoundingClientRect().height > 0),
  up: win.getComputedStyle(doc.querySelector(".up")).position,
  contents: all("#contents a").map((a) => a.hash.slice(1)),
  headings: all("h2").map(said), charts: all(".plot[role=img]").map((chart) => ({
    alt: chart.getAttribute("aria-label"), markers: chart.querySelectorAll(".marker").length,
    drawn: [...chart.querySelectorAll(".segment")].every((line) => line.getBBox().width > 0)})),
  cells: all("table.grid-table td").map((cell) => ({
    paper: said(cell.querySelector(".paper")), measured: cell.querySelector(".n")?.textContent,
    link: cell.querySelector("a")?.getAttribute("href"), command: cell.querySelector("a")?.title,
    again: cell.querySelector(".again") !== null, label: cell.dataset.label,
    marks: cell.querySelector(".marks")?.textContent ?? ""})),
  rulings: all("table.claims .ruling").map(said),
  suite: all("table.suite tbody tr").map(said),
  commands: all(".commands pre").map(said),
  flags: all("dl.flags dt").map(said),
  scopes: all("th").every((cell) => cell.scope !== ""),
  dangling: all("a[href^='#']").filter((a) => !doc.getElementById(a.hash.slice(1))).length,
  doubled: all("[id]").length - new Set(all("[id]").map((node) => node.id)).size,
  sideways: doc.documentElement.scrollWidth - doc.documentElement.clientWidth,
  reached: win.performance.getEntriesByType("resource").map((entry) => entry.name),
};
"""
EVIL = "<script>top.pwned=1</script><img src=x onerror='top.pwned=1'>\"'`|$x$ {{7*7}}"
SCRIPTS = """return { ran: window.pwned ?? null, text: doc.body.textContent, title: doc.title,
  nodes: doc.querySelectorAll("script, img").length };"""


@pytest.fixture
def page(finished: PaperPlan) -> str:
    path = write_page([finished], [summarize(finished, OUT)], OUT, Path("pages/of all.html"))
    return path.read_text()


def evil(make_plan: MakePlan) -> str:
    rows = [
        row | {"label": EVIL, "group": EVIL, "note": EVIL, "published": ["90.0", "10.0", "", "-"]}
        for row in TABLE["rows"]
    ]
    columns = [column | {"label": EVIL} for column in TABLE["columns"]]
    claims = [claim | {"says": EVIL} for claim in TABLE["claims"]]
    changes = {"rows": rows, "columns": columns, "claims": claims, "title": EVIL, "notes": [EVIL]}
    plan = make_plan({"says": EVIL}, source=EVIL, **changes)
    text = to_page([plan], [summarize(plan, OUT)], Links(OUT, Path()))
    assert "Content-Security-Policy" in text
    return re.sub(r"<meta http-equiv[^>]*>", "", text)


@needs_chromium
def test_page_shows_published_and_measured_values_side_by_side(
    finished: PaperPlan, page: str, make_plan: MakePlan
) -> None:
    answers = ask(
        {
            "page": Question(page, FACTS),
            "phone": Question(page, FACTS, width=360),
            "evil": Question(evil(make_plan), SCRIPTS),
        }
    )
    facts, result = answers["page"], summarize(finished, OUT)
    assert len(facts["cells"]) == len(result.cells) == 8
    for shown, cell in zip(facts["cells"], result.cells, strict=True):
        assert shown["paper"] == (cell.published or "no figure")
        assert shown["measured"] == f"{cell.value:.1f}"
        report = Path("pages") / unquote(shown["link"])
        assert report.resolve() == (OUT / (cell.run or "") / REPORT).resolve()
        assert report.is_file()
        assert shown["command"] == cell.command
        assert shown["command"] in facts["commands"]
        assert shown["again"] == (cell.as_in is not None)
        assert len(shown["marks"]) == len(cell.flags)
    assert facts["rulings"] == [each.ruling for each in result.judgements]
    assert [flag.split(" ", 1)[1] for flag in facts["flags"]] == list(
        dict.fromkeys(flag for cell in result.cells for flag in cell.flags)
    )
    (chart,) = facts["charts"]
    assert chart["drawn"]
    assert chart["markers"] == 4  # measured and published, static and dent
    assert "measured from" in chart["alt"]
    assert "paper from 10.0% to 40.0%" in chart["alt"]
    for width in ("page", "phone"):
        found = answers[width]
        assert (found["dangling"], found["doubled"], found["sideways"]) == (0, 0, 0)
        assert found["scopes"]
        assert not found["reached"]
    assert (answers["evil"]["ran"], answers["evil"]["nodes"]) == (None, 0)
    assert answers["evil"]["text"].count(EVIL) >= len(TABLE["columns"])
    assert "49" not in answers["evil"]["title"]


@needs_chromium
def test_page_of_all_tables_is_rendered_before_any_run() -> None:
    scale = load_scale("cpu")
    plans = [plan_table(load_table(name), scale) for name in table_names()]
    results = [summarize(plan, Path("nowhere")) for plan in plans]
    facts = ask({"page": Question(to_page(plans, results, Links(OUT, Path())), FACTS)})["page"]
    assert len(facts["headings"]) == len(plans) + 3  # plus contents, sentences and overview
    assert facts["back"]
    assert facts["up"] == "fixed"
    assert {"sentences", "overview", *table_names()} <= set(facts["contents"])
    assert len(facts["cells"]) == sum(len(plan.cells) for plan in plans)
    assert {cell.get("measured") for cell in facts["cells"]} == {None}
    assert set(facts["rulings"]) == {"not measured"}
    drawn = {table: len(load_table(table).charts) for table in table_names()}
    for table in ("table7", "table9", "table10", "table13", "table14", "figure4"):
        assert drawn[table] > 0
    # The paper prints no numbers for figure4, so it has no chart before its run.
    assert len(facts["charts"]) == sum(drawn.values()) - drawn["figure4"]
    assert all(chart["drawn"] for chart in facts["charts"])
    assert (facts["dangling"], facts["doubled"], facts["sideways"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("name", "unit"), [("section44", "pixels"), ("table4", "percentage points"), ("table14", None)]
)
def test_page_states_differences_in_the_unit_of_their_cells(name: str, unit: str | None) -> None:
    plan = plan_table(load_table(name), load_scale("cpu"))
    text = to_page([plan], [summarize(plan, Path("nowhere"))], Links(OUT, Path()))
    said = re.findall(r"Differences are the first cell minus the second, in ([^.<]*)\.", text)
    assert said == ([unit] if unit else [])


def test_judgement_has_no_published_value_if_the_paper_prints_none() -> None:
    for name in table_names():
        table = load_table(name)
        plan = plan_table(table, load_scale("cpu"))
        printed = {key: cell.published for key, cell in table.cells.items()}
        for each in summarize(plan, Path("nowhere")).judgements:
            if not all(printed[cell] for cell in each.cells):
                assert each.published is None, (name, each.claim)


def test_page_starts_with_one_row_for_each_claim() -> None:
    plans = [plan_table(load_table(name), load_scale("cpu")) for name in table_names()]
    results = [summarize(plan, Path("nowhere")) for plan in plans]
    text = to_page(plans, results, Links(OUT, Path()))
    first = text[text.index('id="sentences"') : text.index('id="overview"')]
    said = [claim.says for plan in plans for claim in plan.table.claims]
    assert first.count('<th scope="row">') == len(said)
    # A claim about six models, which two stand-ins represent at this scale.
    assert re.search(r'In every case, dent.*?>2 <span class="ruling', first, re.S)


def test_overview_says_that_the_suite_has_too_few_samples_to_show_a_gain() -> None:
    plan = plan_table(load_table("table4"), load_scale("cpu"))
    text = to_page([plan], [summarize(plan, Path("nowhere"))], Links(OUT, Path()))
    assert "dynamic suite (256 samples: too few to show a gain below 5 points)</th>" in text
    found = summarize(plan, Path("nowhere"))
    suite = tuple(each.model_copy(update={"ruling": "no gain"}) for each in found.suite)
    text = to_page([plan], [found.model_copy(update={"suite": suite})], Links(OUT, Path()))
    assert ">no gain shown, no gain shown</td>" in text


def test_label_of_a_comparison_names_a_shared_row_or_column_once() -> None:
    table = load_table("table4")
    static, dynamic = "∆ ×, Σ NONE, STEP 0", "∆ √, Σ DYNA., STEP 10"
    assert label(table, "static/natural") == f"{static}: NATURAL"
    assert label_of(table, ("static/natural",)) == f"{static}: NATURAL"
    rows = label_of(table, ("dynamic-10/natural", "static/natural"))
    assert rows == f"{dynamic} against {static}: NATURAL"
    columns = label_of(table, ("static/natural", "static/time"))
    assert columns == f"{static}: NATURAL against TIME"
    both = label_of(table, ("dynamic-10/natural", "static/time"))
    assert both == f"{dynamic}: NATURAL against {static}: TIME"


class Ran:
    """The exit status and the output of a command."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code or 0, out, err


@pytest.fixture
def dent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setattr(CONSOLE, "width", 220)

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr("sys.argv", ["dent", "paper", *arguments])
        with pytest.raises(SystemExit) as done:
            main()
        captured = capsys.readouterr()
        return Ran(done.value.code, captured.out, captured.err)

    return run


def small(monkeypatch: pytest.MonkeyPatch, finished: PaperPlan) -> None:
    """Make `dent paper` use this plan for every table, and report all weights as missing."""
    monkeypatch.setattr("dent.paper.plan_table", lambda *_: finished)
    monkeypatch.setattr("dent.paper.estimate._is_here", lambda _: False)


def test_dent_paper_without_arguments_lists_all_tables(dent: Any) -> None:
    listed = dent()
    assert listed.code == 0
    for name in table_names():
        assert re.search(rf"^{name} +{re.escape(load_table(name).source)}: ", listed.out, re.M)
    plain = json.loads(dent("--json").out)
    assert [table["id"] for table in plain] == list(table_names())
    assert plain[0]["cells"] == len(load_table("table1").cells)


def test_dent_paper_prints_the_results_and_writes_the_page(
    dent: Any, finished: PaperPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, finished)
    ran = dent("table1", "--out", str(OUT), "--report", "here.html")
    assert ran.code == 0, ran.err
    result = summarize(finished, OUT)
    for cell in result.cells:
        name = label(finished.table, f"{cell.row}/{cell.column}")
        line = next(row for row in ran.out.splitlines() if f" {name} " in row)
        assert f"{cell.value:.1f} [" in line
        assert cell.published in line
    assert "Claim: Dent improves.\n" in ran.out
    assert "; ε∞, SMALL: DENT against STATIC\n" in ran.out
    assert "Estimating what is left to run ..." in ran.err
    assert "Page: here.html" in ran.out
    assert "A small table" in Path("here.html").read_text()
    plain = json.loads(dent("table1", "--out", str(OUT), "--json").out)
    assert plain == [result.model_dump(mode="json")]
    assert (OUT / "paper.html").is_file()


def test_estimate_runs_nothing_and_counts_only_unfinished_runs(
    dent: Any, make_plan: MakePlan, finished: PaperPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, finished)
    run = finished.cells["small/dent"].run
    assert run is not None
    (OUT / RUNS / run.folder / RESULT).unlink()
    (one, together) = json.loads(dent("table1", "--estimate", "--json", "--out", str(OUT)).out)
    assert (one["runs"], together["runs"]) == (1, 1)
    assert one["seconds"] is None
    assert one["missing"] == ["paper_model:make"]
    assert "not timed" in dent("table1", "--estimate", "--out", "elsewhere").out
    assert not Path("elsewhere").exists()
    more = make_plan({"samples": 16}, **NO_SUITE)
    small(monkeypatch, more)
    (two, _) = json.loads(dent("table1", "--estimate", "--json", "--out", "elsewhere").out)
    assert (two["runs"], two["forwards"] > 2 * one["forwards"]) == (2, True)


def test_runs_with_missing_weights_are_skipped_and_reported_once(
    dent: Any, finished: PaperPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = {}
    for key, cell in finished.cells.items():
        assert cell.run is not None
        model = replace(cell.run.model, weights=Path("none.pt"))
        cells[key] = replace(cell, run=replace(cell.run, model=model))
    small(monkeypatch, replace(finished, cells=cells))
    ran = dent("table1", "--out", "elsewhere")
    assert ran.code == 3
    assert len(re.findall("none.pt", ran.err)) == 1
    assert "2 runs skipped: paper_model:make has no weights at none.pt" in ran.err
    assert "a time that is not known, because models are missing" in ran.err
    assert "Table 0: A small table: not run. To run it: dent paper tiny" in ran.out
    assert "measured" not in ran.out


def test_interrupted_table_is_shown_as_unfinished(
    dent: Any, make_plan: MakePlan, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(**NO_SUITE)
    small(monkeypatch, plan)

    def stop(done: int, total: int, name: str, state: Any) -> None:
        """Interrupt the defense's run when the first of two batches has all its records."""
        del total, name
        if done == 1 and state is not None and state.done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plans([plan], OUT, loader, watch=stop)
    result = summarize(plan, OUT)
    partial = [cell for cell in result.cells if cell.state == "partial"]
    assert {(cell.count.total if cell.count else None) for cell in partial} == {4}
    ran = dent("table1", "--no-run", "--out", str(OUT))
    assert ran.code == 0, ran.err
    assert ran.out.count("partial, 4 of 8") == len(partial) > 0
    assert f"Not finished. To resume it: {result.command}\n" in ran.out
    unfinished = [each for each in result.judgements if each.ruling == "not finished"]
    assert [each.claim for each in unfinished] == ["improves", "improves"]
    assert "  not finished: " in ran.out
    assert "reproduced: " not in ran.out.split("Claim: It breaks.")[0]
    text = to_page([plan], [result], Links(OUT, Path()))
    assert '<th scope="col">not finished</th>' in text
    assert "1 are not finished" in text


def test_estimate_lists_missing_models_of_the_scale_and_how_to_train_them(
    dent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dent.paper.estimate._is_here", lambda _: False)
    ran = dent("table1", "table14", "--scale", "gpu", "--estimate", "--out", "elsewhere")
    assert ran.code == 0, ran.err
    assert ran.err == "Timing one prediction of each model ...\n"
    assert "Carmon" not in ran.out
    assert "make it by" not in ran.out  # the l-inf, l2 and nominal models are bundled
    assert "The largest unit: standard" in ran.out
    assert "not timed." in ran.out
    assert "212.1 million" in ran.out
    assert "At most: " not in ran.out  # nothing is timed
    ran = dent("table3", "--scale", "gpu", "--estimate", "--out", "elsewhere")
    assert ran.code == 0, ran.err
    making = "  resnet-26-4 on cifar10: make it by: dent train --recipe "
    assert ran.out.count(f"{making}trades-linf ") == 1
    assert ran.out.count(making) == 1


def test_no_suite_option_leaves_out_the_runs_of_the_suite(
    dent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dent.paper.estimate._is_here", lambda _: False)
    plan = plan_table(load_table("table10"), load_scale("cpu"))
    words = ("table10", "--estimate", "--json", "--out", "elsewhere")
    (every, _), (paper, _) = (json.loads(dent(*words, *more).out) for more in ((), ("--no-suite",)))
    assert every["runs"] - paper["runs"] == len(set(plan.suites.values())) == 1
    assert paper["runs"] == len({run for run in plan.runs() if not run.suite})
    assert every["forwards"] > 9 * paper["forwards"]


def test_estimate_and_page_say_which_claims_a_scale_is_too_small_for(dent: Any) -> None:
    ran = dent("table6", "table12", "--estimate", "--out", "elsewhere")
    assert "This cannot be told at this scale, whatever the result: 12 comparisons of " in ran.out
    assert "This cannot be reproduced at this scale, whatever the result: 4 compari" in ran.out
    six, twelve, both = json.loads(
        dent("table6", "table12", "--estimate", "--json", "--out", "elsewhere").out
    )
    assert (six["foreseen"], twelve["foreseen"]) == (
        {"cannot be told": 12},
        {"cannot be reproduced": 4},
    )
    assert both["foreseen"] == six["foreseen"] | twelve["foreseen"]
    assert both["largest_unit"]["forwards"] >= twelve["largest_unit"]["forwards"] > 0
    plan = plan_table(load_table("table6"), load_scale("cpu"))
    result = summarize(plan, Path("nowhere"))
    said = [each.sentence for each in result.judgements]
    limited = "Not measured. This cannot be told at this scale, whatever the result."
    assert (said.count(limited), said.count("Not measured.")) == (12, 2)
    text = to_page([plan], [result], Links(OUT, Path()))
    assert "<b>12</b> cannot be told, <b>0</b> cannot be reproduced" in text


def test_estimate_gives_no_time_for_a_profile(dent: Any) -> None:
    ran = dent("table14", "--estimate", "--out", "elsewhere")
    assert "At most: if every attack runs to its end. " in ran.out
    (line,) = [row for row in ran.out.splitlines() if row.startswith("│ table14 ")]
    assert [part.strip() for part in line.split("│")[1:-1]] == ["table14", "0", "0", "not timed"]
    (own, _) = json.loads(dent("table14", "--estimate", "--json", "--out", "elsewhere").out)
    assert own["seconds"] is None


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0"),
        (3184, "3,184"),
        (123_456, "0.1 million"),
        (5.2e6, "5.2 million"),
        (13_020_500_000, "13.0 billion"),
    ],
)
def test_large_numbers_of_forwards_are_written_in_millions_and_billions(
    count: float, words: str
) -> None:
    assert forwards_in_words(count) == words


def test_progress_names_the_cell_and_the_time_left_in_this_and_later_runs(
    dent: Any, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(**NO_SUITE)
    small(monkeypatch, plan)
    monkeypatch.setattr("dent.cli.commands.paper.preflight.check_writable", lambda *_, **__: None)
    monkeypatch.setattr("dent.paper.estimate.timer", lambda _: lambda _: 0.001)
    ran = dent("table1", "--out", "fresh")
    assert ran.code == 0, ran.err
    assert "tiny, run 1 of 2 (ε∞, SMALL: STATIC): " in ran.err
    assert "tiny, run 2 of 2 (ε∞, SMALL: DENT): " in ran.err
    lines = ran.err.splitlines()
    left = [line for line in lines if " left in this run" in line]
    first = [line for line in left if "run 1 of 2" in line]
    assert all(re.search(r" left in this run, at most .* in the later runs$", x) for x in first)
    assert all(line.endswith("left in this run") for line in left if "run 2 of 2" in line)
    assert [line for line in left if "run 2 of 2" in line]
    assert all(
        re.match(r"tiny, run \d of 2 \(.*\): .* \[unit \d+ of \d+\]  about ", x) for x in left
    )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("table99",), "Expected one of table1"),
        (("table1", "--scale", "huge"), "Expected one of full, gpu, cpu-wide, cpu"),
        (("table1", "--all"), "--all includes every table"),
    ],
)
def test_invalid_table_scale_and_all_arguments_are_refused(
    dent: Any, arguments: tuple[str, ...], why: str
) -> None:
    ran = dent(*arguments)
    assert (ran.code, why in ran.err) == (2, True)
