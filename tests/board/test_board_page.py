"""Test the page of the board: content, sorting, filtering, small screens and dark mode."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dent.board.board_row import BoardRow
from dent.board.listing import rank, read_board_row
from dent.board.page import to_page, write_reports
from dent.board.plots import scatter
from dent.board.submission import KnownAttack, RowSubmission
from dent.board.tracks import HEADLINE
from dent.evaluation.results.intervals import tango
from dent.evaluation.results.result import Decision
from tests.board.conftest import Put
from tests.board.rows import NAME, make_row
from tests.board.toys import toy
from tests.report.browser import Question, ask, needs_chromium
from tests.report.test_report_browser import CONTRAST, EVIL

SMALL = toy(half=4, batch_size=4, fixed="0-3")
OTHER = toy(name="other-v1", half=4, batch_size=4, fixed="0-3")
SUBMISSION = RowSubmission(
    name="first",
    track="toy-v1",
    factory="dent+",
    contact="us",
    license="MIT",
    evaluated_by="us",
    paper="https://example.org/paper",
    known_attacks=(KnownAttack(title="An attack", url="https://example.org/attack"),),
)
GAINS = {"a": 3, "b": -2, "c": 0, EVIL[:60]: 1}
COSTS = {"a": 30.0, "b": 4.0, "c": 1.5, EVIL[:60]: 7.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_row(tmp_path_factory.mktemp("board") / "row", SMALL)


@pytest.fixture
def rows(made: Path, put: Put) -> list[BoardRow]:
    """Four rows on two tracks, with the gains and costs of `GAINS` and `COSTS`."""
    put(SMALL)
    row = read_board_row(made)
    return [_row(row, name, index) for index, name in enumerate(GAINS)]


def _row(row: BoardRow, name: str, index: int) -> BoardRow:
    result = row.headline.result
    defense = result.defenses[NAME]
    assert defense.difference is not None
    gained, lost = max(GAINS[name], 0), max(-GAINS[name], 0)
    difference = defense.difference.model_copy(
        update={
            "value": GAINS[name] / 8,
            "only_defended": gained,
            "only_static": lost,
            "interval": tango(gained, lost, 8),
        }
    )
    timing = {**defense.timing, "relative": COSTS[name]}
    changed = defense.model_copy(update={"difference": difference, "timing": timing})
    headline = replace(
        row.headline,
        result=result.model_copy(update={"defenses": {**result.defenses, NAME: changed}}),
    )
    return replace(
        row,
        track=SMALL if index < 2 else OTHER,
        submission=SUBMISSION.model_copy(update={"name": name}),
        headline=headline,
    )


def test_page_shows_the_numbers_links_and_departures_of_a_row(rows: list[BoardRow]) -> None:
    page = to_page(rows, Path())
    for text in ("+37.5", "−25.0", "30.0×", "half drawn by 1f", "claimed"):
        assert text in page, text
    assert 'href="https://example.org/paper"' in page
    assert "An attack" in page
    assert "Not as the track says" not in page
    strange = replace(rows[0], headline=replace(rows[0].headline, departures=("eps: other",)))
    assert "Not as the track says: eps: other" in to_page([strange], Path())


@dataclass(frozen=True)
class Outside:
    """A challenge, as a result lists it."""

    by: str
    url: str | None
    lowered: int
    digest: str = "ab" * 32


def test_challenges_that_lower_a_row_are_named_without_unsafe_links(rows: list[BoardRow]) -> None:
    attacks = (
        Outside("Eve", "https://example.org/images", 3),
        Outside("Mallory", "javascript:alert(1)", 1),
        Outside("Trudy", "https://example.org/other", 0),
    )
    headline = rows[0].headline
    defense = headline.defense.model_copy(update={"challenges": attacks, "decided": None})
    defenses = {**headline.result.defenses, NAME: defense}
    result = headline.result.model_copy(update={"defenses": defenses})
    row = replace(rows[0], headline=replace(headline, result=result))
    assert row.trust == "claimed, lowered by Eve, Mallory"
    page = to_page([row], Path())
    assert '<a href="https://example.org/images">page given by Eve</a>' in page
    for name in ("Eve", "Mallory"):
        assert f"<small>images of {name}: digest <code>{'ab' * 32}</code></small>" in page
    assert "javascript:" not in page
    assert "Trudy" not in page


def stopped(row: BoardRow, after: int) -> BoardRow:
    """Return a row whose run stopped after some of 18 attacks on the defense."""
    decided = Decision(after=after, of=18, at_most=0.0, below=False)
    return with_defense(row, decided=decided)


def with_defense(row: BoardRow, **changes: Any) -> BoardRow:
    headline = row.headline
    defense = headline.defense.model_copy(update=changes)
    defenses = {**headline.result.defenses, NAME: defense}
    result = headline.result.model_copy(update={"defenses": defenses})
    return replace(row, headline=replace(headline, result=result))


def body(page: str) -> str:
    return page.partition("<tbody>")[2].partition("</tbody>")[0]


def test_difference_of_a_row_that_stopped_early_is_an_upper_bound(rows: list[BoardRow]) -> None:
    whole = with_defense(rows[0], decided=None)
    page = body(to_page([whole], Path()))
    chart = scatter(SMALL, [(1, whole)])
    assert "at most" not in page
    assert "stopped early" not in page
    assert chart is not None
    assert "at most" not in chart.alt
    early = stopped(whole, 8)
    variant = replace(early.headline, name="by-class")
    page = body(to_page([replace(early, variants=(variant,))], Path()))
    assert '<span class="n">at most +37.5</span>' in page
    assert "<small>after 8 of 18 attacks on it</small>" in page
    assert "<small>stopped early</small>" in page
    assert "<small>by-class: at most +37.5 " in page
    chart = scatter(SMALL, [(1, early)])
    assert chart is not None
    assert "at most +37.5" in chart.dots[0].text
    assert "after 8 of 18 attacks on it" in chart.alt
    assert chart.dots[0].bound
    assert chart.dots[0].low == chart.dots[0].y > (chart.dots[0].high or 0)
    assert "hollow, with an arrow: at most" in to_page([early], Path())
    assert "hollow" not in to_page([whole], Path())
    page = body(to_page([stopped(whole, 0)], Path()))
    assert "after transfers, with 0 of 18 attacks on it complete" in page
    told = replace(early, variants=(variant,)).to_json()
    assert (told["decided"]["after"], told["decided"]["of"]) == (8, 18)
    assert told["variants"][0]["decided"]["after"] == 8
    assert whole.to_json()["decided"] is None


def test_rows_that_stopped_early_come_after_measured_ones_of_the_same_verdict(
    rows: list[BoardRow],
) -> None:
    measured = with_defense(rows[1], decided=None)
    long, short = stopped(rows[2], 8), stopped(rows[0], 1)
    assert {each.ruling for each in (measured, long, short)} == {rows[0].ruling}
    assert sorted((short, long, measured), key=rank) == [measured, long, short]


def test_challenge_breaks_only_a_row_that_had_a_gain_without_it(
    rows: list[BoardRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = with_defense(rows[0], challenges=(Outside("Eve", None, 3),), decided=None)
    assert row.ruling == "no gain"
    assert not row.had_gain
    assert row.trust == "claimed, lowered by Eve"
    monkeypatch.setattr(BoardRow, "had_gain", True)
    assert replace(row).trust == "claimed, broken by Eve"


def test_the_number_that_makes_a_row_harmful_is_the_red_one(rows: list[BoardRow]) -> None:
    defense = rows[0].headline.defense
    assert defense.verdict is not None
    assert defense.difference is not None
    lower = defense.difference.model_copy(update={"value": -0.05, "interval": (-0.08, -0.02)})
    level = lower.model_copy(update={"value": 0.01, "interval": (-0.01, 0.03)})

    def row(worst: Any, natural: Any) -> str:
        verdict = defense.verdict.model_copy(update={"ruling": "harmful", "natural": natural})
        changed = with_defense(rows[0], difference=worst, verdict=verdict, decided=None)
        return body(to_page([changed], Path()))

    bad = r'class="bad"><span class="fig"><span class="n">'
    clean = row(level, lower)
    assert f"{bad}−5.0" in clean
    assert f"{bad}+1.0" not in clean
    assert "<small>clean accuracy is lower</small>" in clean
    robust = row(lower, level)
    assert f"{bad}−5.0" in robust
    assert f"{bad}+1.0" not in robust
    assert "clean accuracy is lower" not in robust


def test_board_shows_how_robust_and_accurate_the_base_model_is() -> None:
    folder = Path(__file__).parents[2] / "board/cifar10-linf-8_255-v1/static"
    row = read_board_row(folder)
    assert row.ruling == "the reference"
    page = body(to_page([row], Path()))
    assert '<span class="n">40.8% robust</span> <span class="ci">[37.8, 43.9]</span>' in page
    assert '<span class="n">72.9%</span> <span class="ci">[70.0, 75.5]</span>' in page
    chart = scatter(row.track, [(1, row)])
    assert chart is None or chart.base.startswith(
        "The base model: 40.8% [37.8, 43.9] robust, 72.9%"
    )


def test_numbers_of_close_dots_do_not_cover_each_other(rows: list[BoardRow]) -> None:
    chart = scatter(SMALL, [(number, rows[0]) for number in range(1, 9)])
    assert chart is not None
    assert len({dot.label for dot in chart.dots}) == 8


def test_column_that_no_row_has_is_left_out(rows: list[BoardRow]) -> None:
    assert all(row.less_views is None for row in rows)
    page = to_page(rows, Path())
    assert "Against views" not in page
    assert "mean over several views" not in page


def test_void_row_is_listed_with_its_reason_and_without_a_verdict(rows: list[BoardRow]) -> None:
    void = replace(rows[0], void="Tuned on the fixed half")
    page = to_page([void], Path())
    assert "Void: Tuned on the fixed half" in page
    assert rows[0].ruling not in page.partition("<tbody>")[2].partition("</tbody>")[0]
    assert scatter(SMALL, [(1, void)]) is None


def test_scatter_plot_places_one_dot_per_row_by_its_gain_and_cost(rows: list[BoardRow]) -> None:
    rows = [with_defense(row, decided=None) for row in rows]
    found = scatter(SMALL, list(enumerate(rows, start=1)))
    assert found is not None
    by_number = {dot.number: dot for dot in found.dots}
    assert by_number[1].y < by_number[4].y < by_number[3].y == found.zero < by_number[2].y
    assert by_number[1].x > by_number[4].x > by_number[2].x > by_number[3].x > 0
    assert all(0 <= dot.x <= 100 for dot in found.dots)
    assert all(dot.low is not None and dot.low > dot.y > (dot.high or 0) for dot in found.dots)
    assert all(0 <= (dot.high or 0) < (dot.low or 0) <= found.height for dot in found.dots)
    assert "30.0×" in found.alt


def test_links_to_reports_are_relative_to_the_page(rows: list[BoardRow], tmp_path: Path) -> None:
    row = replace(rows[0], folder=tmp_path / "board" / "it")
    (row.folder / HEADLINE).mkdir(parents=True)
    page = to_page([row], tmp_path / "site", write_reports([row]))
    assert 'href="../board/it/headline/report.html"' in page


def test_report_that_a_submitter_supplied_is_not_linked(
    rows: list[BoardRow], tmp_path: Path
) -> None:
    row = replace(rows[0], folder=tmp_path / "board" / "it")
    (row.folder / HEADLINE).mkdir(parents=True)
    (row.folder / HEADLINE / "report.html").write_text("<script>alert(1)</script>")
    assert "report.html" not in to_page([row], tmp_path)


ASKED = """
const rows = () => [...doc.querySelectorAll("table.board tbody tr")];
const names = () => rows().filter((row) => win.getComputedStyle(row).display !== "none")
  .map((row) => row.querySelector("th").dataset.sort);
const heads = [...doc.querySelectorAll("table.board thead th")];
const click = (column) => { heads[column].querySelector("button").click(); return names(); };
const choose = (value) => {
  const radio = doc.querySelector(`input[name=track][value="${value}"]`);
  radio.click(); return names();
};
const charts = () => [...doc.querySelectorAll(".scatter")]
  .map((chart) => win.getComputedStyle(chart).display !== "none");
const select = doc.querySelector("select[name=sort]");
return {
  first: names(), gain: click(2), again: click(2), sorted: heads[2].getAttribute("aria-sort"),
  missing: click(3), cost: click(4), name: click(0),
  other: choose("other-v1"), shown: doc.getElementById("shown").textContent, charts: charts(),
  all: choose(""), every: charts(),
  chosen: (() => {
    select.value = "2"; select.dispatchEvent(new win.Event("change", {bubbles: true}));
    return names();
  })(),
  links: [...doc.querySelectorAll(".scatter a.dot")]
    .filter((a) => doc.getElementById(a.getAttribute("href").slice(1))).length,
  markers: doc.querySelectorAll(".scatter .dot").length,
  pwned: win.top.pwned ?? null,
  scripts: doc.querySelectorAll("script, img").length,
  reached: win.performance.getEntriesByType("resource").length,
  sideways: doc.documentElement.scrollWidth - doc.documentElement.clientWidth,
  cut: [...doc.querySelectorAll("table.board td")].filter((n) =>
    n.scrollWidth > n.clientWidth + 1 && n.clientWidth > 0).length,
  sorters: [...doc.querySelectorAll("thead button")].map((b) => win.getComputedStyle(b).visibility),
  headers: win.getComputedStyle(doc.querySelector("thead")).position,
};
"""


@needs_chromium
def test_page_can_be_sorted_and_filtered_on_desktop_and_phone(rows: list[BoardRow]) -> None:
    page = to_page(rows, Path())
    evil = EVIL[:60].lower()
    asked: dict[str, Any] = ask(
        {"desk": Question(page, ASKED), "phone": Question(page, ASKED, width=360)}
    )
    for name, found in asked.items():
        assert not isinstance(found, str), found
        assert found["first"] == ["a", "b", "c", evil], name
        assert found["gain"] == ["a", evil, "c", "b"]
        assert found["again"] == ["b", "c", evil, "a"]
        assert found["sorted"] == "ascending"
        assert found["missing"] == ["a", "b", "c", evil], "what has no value keeps its order"
        assert found["cost"] == ["a", evil, "b", "c"]
        assert found["name"] == [evil, "a", "b", "c"]
        assert sorted(found["other"]) == sorted([evil, "c"])
        assert found["shown"] == "2 of 4 rows are shown."
        assert found["charts"] == [False, True]
        assert found["every"] == [True, True]
        assert len(found["all"]) == 4
        assert found["chosen"] == ["a", evil, "c", "b"]
        assert found["markers"] == found["links"] == 4
        assert (found["pwned"], found["scripts"], found["reached"]) == (None, 1, 0)
        assert (found["sideways"], found["cut"]) == (0, 0), name
    assert asked["phone"]["headers"] == "absolute"
    assert set(asked["phone"]["sorters"]) == {"hidden"}
    assert set(asked["desk"]["sorters"]) == {"visible"}


@needs_chromium
def test_digest_of_outside_images_fits_on_a_phone(rows: list[BoardRow]) -> None:
    broken = with_defense(rows[0], challenges=(Outside("Eve", None, 3),), decided=None)
    script = """
    const digest = [...doc.querySelectorAll("td code")].find((n) => n.textContent.length === 64);
    const cell = digest.closest("td");
    return [doc.documentElement.scrollWidth - doc.documentElement.clientWidth,
      Math.max(cell.scrollWidth - cell.clientWidth, 0)];
    """
    asked = {
        name: Question(to_page([broken, rows[1]], Path()), script, width=width)
        for name, width in (("desk", 1200), ("phone", 360))
    }
    assert ask(asked) == {"desk": [0, 0], "phone": [0, 0]}


@needs_chromium
def test_bounds_are_sorted_after_measurements_in_both_directions(rows: list[BoardRow]) -> None:
    bound = stopped(rows[0], 8)  # the highest difference
    measured = [with_defense(row, decided=None) for row in rows[1:3]]
    script = ASKED.partition("const choose")[0] + "return [click(2), click(2)];"
    found = ask({"it": Question(to_page([bound, *measured], Path()), script)})["it"]
    assert found == [["c", "b", "a"], ["b", "c", "a"]]


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_page_has_enough_contrast_in_light_and_dark_mode(rows: list[BoardRow], dark: bool) -> None:
    found = ask({"it": Question(to_page(rows, Path()), CONTRAST)}, dark=dark)["it"]
    assert found["worst"][0] >= 4.5, found
    assert (found["paper"] == "rgb(20, 23, 27)") == dark


def test_empty_board_is_rendered_without_scripts() -> None:
    page = to_page([], Path())
    assert "There are no rows yet" in page
    assert "<script>" not in page
