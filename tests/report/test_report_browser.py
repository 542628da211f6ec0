"""The HTML report in headless Chromium: content, width, color schemes, and hostile names."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dent.data import ArrayDataset
from dent.evaluation import EvaluationResult, Settings, Subject, evaluate
from dent.report import write_report
from tests.report.browser import Question, ask, needs_chromium
from tests.report.conftest import letters_of, small

pytestmark = needs_chromium

FACTS = """
const all = (css) => [...doc.querySelectorAll(css)], text = (node) => node.innerText.trim();
const marked = (node) => {  // with flags as {a}
  const copy = node.cloneNode(true);
  for (const sup of copy.querySelectorAll(".marks")) sup.replaceWith(`{${sup.textContent}}`);
  return copy.textContent.replace(/\\s+/g, " ").trim();
};
const cells = (table) => [...table.querySelectorAll("tr")].map((row) =>
  [...row.querySelectorAll("th, td")].map(marked));
return {
  title: doc.title,
  headings: all("h2").map(text),
  contents: all("nav li").map(text),
  cards: Object.fromEntries(all(".card").map((card) => [text(card.querySelector("h3, h4")), {
    big: text(card.querySelector(".big")), whole: text(card),
    figures: [...card.querySelectorAll(".big, .fig")].map(marked),
  }])),
  tables: all("table").map((table) => ({
    caption: table.caption?.textContent ?? "",
    scopes: [...table.querySelectorAll("th")].map((cell) => cell.scope),
    headed: table.tHead !== null,
    rows: cells(table),
  })),
  images: all("img").map((image) => ({
    alt: image.alt, width: image.naturalWidth, data: image.src.startsWith("data:image/png"),
  })),
  charts: all(".plot[role=img]").map((chart) => ({
    alt: chart.getAttribute("aria-label"), markers: chart.querySelectorAll(".marker").length,
    drawn: [...chart.querySelectorAll(".segment")].every((line) => line.getBBox().width > 0),
  })),
  flags: all("dl.flags dt").map(text),
  dangling: all("a[href^='#']").filter((a) => !doc.getElementById(a.hash.slice(1))).length,
  doubled: all("[id]").length - new Set(all("[id]").map((node) => node.id)).size,
  reached: win.performance.getEntriesByType("resource").map((entry) => entry.name)
    .filter((name) => !name.startsWith("data:")),
  sideways: doc.documentElement.scrollWidth - doc.documentElement.clientWidth,
  cut: all(".card *, .stack td").filter((n) => n.scrollWidth > n.clientWidth + 1
    && n.clientWidth > 0 && getComputedStyle(n).display !== "inline").length,
};
"""

CONTRAST = """
const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const rgba = (css) => css.match(/[\\d.]+/g).map(Number);
const light = (css) => { const [r, g, b] = rgba(css).map(channel);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const paper = (node) => { for (; node; node = node.parentElement) {
  const css = win.getComputedStyle(node).backgroundColor;
  if ((rgba(css)[3] ?? 1) > 0) return css; } return "rgb(255, 255, 255)"; };
let worst = [99, ""];
for (const node of doc.querySelectorAll("body *:not(title)")) {
  if (![...node.childNodes].some((c) => c.nodeType === 3 && c.data.trim())) continue;
  const style = win.getComputedStyle(node);
  const ink = node.namespaceURI.endsWith("svg") ? style.fill : style.color;
  const [a, b] = [light(ink), light(paper(node))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < worst[0]) worst = [ratio, node.outerHTML.slice(0, 80)];
}
return { worst, paper: win.getComputedStyle(doc.body).backgroundColor };
"""


EVIL = "<script>top.pwned=1</script><img src=x onerror='top.pwned=1'>\"'`|$x$ {{7*7}}"
SCRIPTS = """return { ran: window.pwned ?? null, text: doc.body.textContent, title: doc.title,
  scripts: doc.querySelectorAll("script, img:not([src^='data:image/png'])").length };"""
TRAP = "<script>top.trapped=1</script>"


@pytest.fixture(scope="module")
def evil_run(
    subject: Subject, labelled: ArrayDataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run whose names all contain HTML markup that runs a script."""
    classes = tuple(f"{EVIL} {index}" for index in range(10))
    dataset = ArrayDataset(EVIL, "test", classes, labelled.pixels, labelled.labels)
    evil = replace(
        small(subject),
        dataset=dataset,
        model_name=EVIL,
        defenses={EVIL: subject.defenses["dent"]},
    )
    path = tmp_path_factory.mktemp("runs") / "<img src=x onerror=top.pwned=1>"
    evaluate(evil, Settings(n=8, batch_size=8), out=path)
    return path


@pytest.fixture(scope="module")
def page(run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return _page([run_path], tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def asked(
    page: str,
    sample_run: Path,
    eps_sweep: Path,
    partial_run: Path,
    evil_run: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """The values of all scripts in the light color scheme, from one browser."""
    folder = tmp_path_factory.mktemp("pages")
    evil = _page([evil_run], folder)
    assert "Content-Security-Policy" in evil
    unprotected = re.sub(r"<meta http-equiv[^>]*>", "", evil)
    assert "Content-Security-Policy" not in unprotected
    return ask(
        {
            "page": Question(page, FACTS),
            "phone": Question(page, FACTS, width=360),
            "wide": Question(page, FACTS, width=1600),
            "contrast": Question(page, CONTRAST),
            "gallery": Question(_page([sample_run], folder), FACTS),
            "several": Question(_page([eps_sweep, partial_run], folder), FACTS),
            "several on a phone": Question(_page([eps_sweep], folder), FACTS, width=360),
            "evil": Question(unprotected, SCRIPTS),
            "trap": Question(TRAP, "return window.trapped ?? null;"),
        }
    )


@pytest.fixture(scope="module")
def facts(asked: Any) -> Any:
    return asked["page"]


def _page(runs: list[Path], folder: Path) -> str:
    return write_report(runs, folder / "r.html").read_text("utf-8")


def test_page_shows_the_headline_and_flags_of_every_defense(
    facts: Any, result: EvaluationResult
) -> None:
    assert list(facts["cards"]) == list(result.defenses)
    for name, found in result.defenses.items():
        card = facts["cards"][name]
        for flag in found.raised:
            assert f"{flag.name}: {flag.sentence}" in card["whole"]
        if found.difference is not None:
            assert found.difference.value is not None
            value = f"{100 * found.difference.value:+.1f}".replace("-", "−")
            assert card["big"].startswith("0.0" if value == "+0.0" else value)
        assert f"per {found.worst.unit}" in card["whole"]
        assert f"{found.worst.served.correct} of {found.worst.served.total}" in card["whole"]
    assert result.defenses["dent"].raised, "the fixture should raise something"


def test_every_number_of_a_flagged_defense_carries_its_flags(
    facts: Any, result: EvaluationResult
) -> None:
    expected = {name: found.replace(",", "") for name, found in letters_of(result).items()}
    assert min(len(expected["dent"]), len(expected["noisy"])) > 1
    assert expected["dent"] != expected["noisy"]
    assert [flag.partition(" ")[0] for flag in facts["flags"]] == sorted(
        set("".join(expected.values()))
    )
    for name in ("dent", "dent-nominal", "noisy"):
        figures = facts["cards"][name]["figures"]
        assert len(figures) == 4
        assert sum(f"{{{expected[name]}}}" in figure for figure in figures) == 3
        assert sum("{" not in figure for figure in figures) == 1, "the static worst case"
    tables = [t for t in facts["tables"] if t["caption"].startswith(("Accuracy on", "Entropy in"))]
    assert len(tables) == 2
    for table in tables:
        group = ""
        for row in table["rows"][1:]:
            group = row[0].partition("{")[0] if len(row) == 1 else group
            for cell in row[1:]:
                if re.match(r"[\d.]+%?(\{| \[|$)", cell):
                    marks = cell.partition("{")[2].partition("}")[0]
                    assert marks == expected[group], (group, row)


def test_table_of_robust_accuracy_matches_the_result(facts: Any, result: EvaluationResult) -> None:
    table = next(t for t in facts["tables"] if "by defense and submission" in t["caption"])
    rows = iter(table["rows"][1:])
    for found in result.defenses.values():
        next(rows)
        assert next(rows)[0] == "natural images"
        for attack in found.attacks:
            row = next(rows)
            share, interval = attack.served.share, attack.served.interval
            assert share is not None
            assert interval is not None
            low, high = interval
            shown = re.sub(r"{.*}", "", row[1])
            assert shown == f"{100 * share:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
            if attack.claimed is not None:
                assert row[4].partition("{")[0] == str(attack.claimed_but_served)
                assert row[5].partition("{")[0] == str(attack.served_wrong_unclaimed)
                assert row[6] == f"{attack.queries}, {attack.backwards}"
        assert next(rows)[0] == f"worst case, per {found.worst.unit}"


def test_table_of_diagnostics_tells_raised_passed_and_not_run_apart(
    facts: Any, result: EvaluationResult
) -> None:
    table = next(t for t in facts["tables"] if t["caption"].startswith("Every diagnostic"))
    shown = {row[0]: row[1:] for row in table["rows"][1:]}
    for at, found in enumerate(result.defenses.values()):
        for item in found.diagnostics:
            said = {"raised": "▲ raised", "passed": "✓ passed", "not-run": "– not run"}[item.state]
            assert shown[item.name][at].startswith(said)
    states = {item.state for found in result.defenses.values() for item in found.diagnostics}
    assert states == {"raised", "passed", "not-run"}


def test_page_has_captioned_tables_valid_links_and_labeled_charts(facts: Any) -> None:
    assert all(table["caption"] and table["headed"] for table in facts["tables"])
    assert all(scope for table in facts["tables"] for scope in table["scopes"])
    assert facts["dangling"] == facts["doubled"] == 0
    assert facts["reached"] == []
    wanted = {"Headline", "Flags", "Robust accuracy by attack", "Adaptation", "Cost"}
    wanted |= {"Progress of the attacks"}
    assert wanted | {"Diagnostics", "Samples", "What was run", "Provenance"} == set(
        facts["headings"]
    )
    assert len(facts["charts"]) >= 2
    for chart in facts["charts"]:
        assert chart["alt"].startswith("Line chart. ")
        assert chart["drawn"]
        # The attack took 3 iterations; the other charts show two defenses.
        assert chart["markers"] >= (4 if "by number of gradients" in chart["alt"] else 6)


@pytest.mark.parametrize("where", ["phone", "wide", "several on a phone"])
def test_page_fits_phones_and_wide_screens_without_overflow(asked: Any, where: str) -> None:
    assert asked[where]["sideways"] == 0
    assert asked[where]["cut"] == 0
    assert asked[where]["headings"] or where == "several on a phone"


def test_text_has_enough_contrast_in_light_and_dark_schemes(asked: Any, page: str) -> None:
    dark = ask({"contrast": Question(page, CONTRAST)}, dark=True)
    assert asked["contrast"]["paper"] != dark["contrast"]["paper"]
    for scheme in (asked["contrast"], dark["contrast"]):
        assert scheme["worst"][0] >= 4.5, scheme


def test_gallery_includes_natural_images_if_the_dataset_can_be_loaded(asked: Any) -> None:
    images = asked["gallery"]["images"]
    kinds = {image["alt"].partition(" of ")[0] for image in images}
    assert kinds == {"Natural image", "Adversarial image", "Perturbation", "Smoothed input"}
    assert all(image["width"] == 32 and image["data"] for image in images)


def test_report_of_several_runs_compares_them_and_plots_accuracy_against_eps(asked: Any) -> None:
    facts = asked["several"]
    assert facts["title"].startswith("3 runs side by side")
    assert re.match(r"eps=1_255: \S+ on \S+, linf 1/255, \d+ samples in", facts["contents"][1])
    groups = [row[0] for row in facts["tables"][0]["rows"] if len(row) == 1]
    assert groups[:2] == ["eps=4_255", "eps=1_255"]
    assert "not finished: 9 of" in groups[2]
    chart = facts["charts"][0]
    assert chart["alt"].startswith("Line chart. Worst-case robust accuracy against eps: static")
    assert chart["markers"] == 2 * 3, "natural accuracy at eps 0, and two values of eps"
    series = next(t for t in facts["tables"] if "differ only in eps" in t["caption"])
    assert [row[0] for row in series["rows"]] == ["eps", "1/255", "4/255"]
    assert facts["dangling"] == facts["doubled"] == facts["sideways"] == 0


def test_markup_in_names_is_shown_as_text_and_never_executed(asked: Any) -> None:
    shown = asked["evil"]
    assert shown["ran"] is None
    assert shown["scripts"] == 0
    assert shown["title"].startswith(EVIL)
    assert shown["text"].count(EVIL) > 20
    assert asked["trap"] == 1, "the trap itself must work"
