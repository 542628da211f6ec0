"""The headline matches the result; terminal, Markdown, HTML and figure match the headline."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dent.cli.console import OUT
from dent.cli.output.result import show_result
from dent.evaluation import Count, EvaluationResult
from dent.report import figure, write_report
from dent.report.flags import letters
from dent.report.headline import Cell, Headline, headline
from dent.report.loading import load_runs
from dent.support.rounding import factor, percent, percent_bounds, points, points_bounds

KEPT = Path(__file__).parents[2] / "docs/evaluation/results/dent-10-dynamic.json"


@pytest.fixture(scope="module")
def judged() -> EvaluationResult:
    """A published result of the dynamic suite: attacks, transfers, assembled batches, a verdict."""
    return EvaluationResult.model_validate_json(KEPT.read_bytes())


def marked(cell: Cell, left: str, right: str) -> str:
    """Return a cell with its interval, and its flags between two delimiters."""
    flags = f"{left}{letters(cell.marks)}{right}" if cell.marks else ""
    return f"{cell.full}{flags}" if cell.full else ""


@pytest.mark.parametrize("name", ["result", "judged"])
def test_headline_cells_match_the_result(name: str, request: pytest.FixtureRequest) -> None:
    result: EvaluationResult = request.getfixturevalue(name)
    table = headline(result)
    assert [row.defense for row in table.rows] == list(result.defenses)
    keys = [column.key for column in table.columns]
    assert len(set(keys)) == len(keys)
    for row in table.rows:
        assert list(row.cells) == keys
        found = result.defenses[row.defense]
        counts: dict[str, Count] = {"natural": found.natural, "worst": found.worst.served}
        for each in found.attacks:
            counts["/".join(filter(None, (each.kind, each.attack)))] = each.served
        if found.difference is not None:
            counts["static"] = found.difference.static
        for key, count in counts.items():
            cell = row.cells[key]
            assert (cell.value, cell.interval) == (count.share, count.interval), key
            assert cell.of == f"{count.correct} of {count.total}"
        assert row.cells["cost"].value == found.timing.get("relative")
        difference = row.cells["difference"]
        if found.difference is None:
            assert difference == Cell()
        else:
            assert difference.value == found.difference.value
            assert difference.interval == found.difference.interval
        if found.verdict is not None:
            assert row.cells["verdict"].text == found.verdict.ruling


@pytest.mark.parametrize("name", ["result", "judged"])
def test_headline_texts_use_the_shared_rounding(name: str, request: pytest.FixtureRequest) -> None:
    for row in headline(request.getfixturevalue(name)).rows:
        for key, cell in row.cells.items():
            if cell.value is None:
                continue
            write, bounds = (
                (points, points_bounds) if key == "difference" else (percent, percent_bounds)
            )
            assert cell.text == (factor if key == "cost" else write)(cell.value)
            assert cell.interval_text == (bounds(cell.interval) if cell.interval else "")


@pytest.mark.parametrize("name", ["result", "judged"])
def test_terminal_table_shows_the_headline(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    result: EvaluationResult = request.getfixturevalue(name)
    monkeypatch.setattr(OUT, "_width", 1000)
    with OUT.capture() as captured:
        show_result(result, "run")
    drawn = [
        [part.strip() for part in re.split("[│┃]", line)[1:-1]]
        for line in captured.get().splitlines()
        if line.startswith(("│", "┃"))
    ]
    table = headline(result)
    names = [row.defense + (f" ({letters(row.marks)})" if row.marks else "") for row in table.rows]
    assert drawn[0] == ["defense", *names]
    assert [line[0] for line in drawn[1:]] == [column.title for column in table.columns]
    for column, line in zip(table.columns, drawn[1:], strict=True):
        cells = [row.cells[column.key] for row in table.rows]
        whole = column.key in ("worst", "difference")
        assert line[1:] == [marked(each, " (", ")") if whole else each.text for each in cells]


def test_markdown_html_and_figure_show_the_headline(
    run_path: Path, tmp_path: Path, result: EvaluationResult
) -> None:
    table = headline(result)
    markdown(table, write_report([run_path], tmp_path / "r.md").read_text(encoding="utf-8"))
    cards(table, write_report([run_path], tmp_path / "r.html").read_text(encoding="utf-8"))
    picture(table, result, tmp_path / "r.svg")


def markdown(table: Headline, text: str) -> None:
    first = re.search(r"^\| defense \|.*\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert first is not None
    titles, *lines = (
        [part.strip() for part in line.strip("| ").split(" | ")]
        for line in (first[0].splitlines()[0], *first[1].splitlines())
    )
    columns = [column for column in table.columns if column not in table.submitted]
    assert titles == ["defense", *(column.title for column in columns), "worst case per"]
    for line, row in zip(lines, table.rows, strict=True):
        drawn = dict(zip(titles, line, strict=True))
        assert drawn["worst case per"] == row.unit
        for column in columns:
            expected = marked(row.cells[column.key], " [", "]")
            of = f" ({row.cells[column.key].of})" if column.key == "worst" else ""
            assert drawn[column.title] == expected + of, column


class Cards(HTMLParser):
    """Collects the text of every card of a page, one string for each defense."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "article":
            self.text.append("")
        elif tag == "dd":
            self.text[-1] += " "

    def handle_data(self, data: str) -> None:
        if self.text:
            self.text[-1] += data


def cards(table: Headline, text: str) -> None:
    read = Cards()
    read.feed(text.partition('<div class="cards">')[2].partition('<div class="limits"')[0])
    plain = [" ".join(card.split()) for card in read.text]
    for card, row in zip(plain, table.rows, strict=True):
        cells = row.cells
        flags, both = (
            "".join(flag.letter for flag in cells[key].marks) for key in ("worst", "difference")
        )
        worst, natural, gain = cells["worst"], cells["natural"], cells["difference"]
        said = f"Worst case, per {row.unit} {worst.text}{flags} {worst.interval_text} {worst.of}"
        assert said in card
        assert f"Clean accuracy {natural.text}{flags} {natural.interval_text}" in card
        big = f"{gain.text} points{both} {gain.interval_text}" if gain.text else worst.text
        assert card.startswith(f"{row.defense} {big}"), card[:80]
        if gain.text:
            static = cells["static"]
            assert re.search(rf"Static, same samples and budget(, per batch)? {static.text}", card)


def picture(table: Headline, result: EvaluationResult, out: Path) -> None:
    figure(result, out)
    drawn = re.findall(r"<!-- (.*?) -->", out.read_text(encoding="utf-8"))
    for row in table.rows:
        for key in ("natural", "worst"):
            cell = row.cells[key]
            flags = f" [{letters(cell.marks)}]" if cell.marks else ""
            assert f"{cell.text}{flags}" in drawn


def test_side_by_side_table_shows_the_headline_of_every_run(
    eps_sweep: Path, tmp_path: Path
) -> None:
    text = write_report([eps_sweep], tmp_path / "r.html").read_text(encoding="utf-8")
    table = re.search(r'aria-label="Side by side">.*?</table>', text, re.DOTALL)
    assert table is not None
    plain = re.sub(r"<sup.*?</sup>", "", table[0], flags=re.DOTALL)
    drawn = re.findall(r'data-label="([^"]+)">(.*?)</td>', plain, re.DOTALL)
    said = [(label, " ".join(re.sub("<[^>]+>", " ", cell).split())) for label, cell in drawn]
    expected = []
    for run in load_runs([eps_sweep]):
        for row in headline(run.result).rows:
            cells = row.cells
            expected += [
                ("Clean", cells["natural"].full),
                ("Worst case", cells["worst"].full),
                ("Taken per", row.unit),
                ("Against static", cells["difference"].full or "the reference"),
                ("Cost", cells["cost"].full),
            ]
    assert said == expected
