"""The rows of the board on the landing page: names that strangers chose are shown as text."""

import re
from html import unescape
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import markdown
import pytest
from mkdocs.config.defaults import MkDocsConfig

from dent.board.board_row import BoardRow
from dent.report.markdown import escape
from tools import docs_hooks

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
NAMES = ("<img src=x onerror=alert(1)> a|b", "x {: onclick=alert(1) }", "[a](javascript:b)")


@pytest.fixture(scope="module")
def row() -> BoardRow:
    """A row with a difference."""
    return next(row for row in docs_hooks._rows() if row.difference is not None)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_foreign_rows_are_text_on_the_landing_page(
    name: str, row: BoardRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = [_named(row, name, f"claimed, broken by {name}")]
    monkeypatch.setattr(docs_hooks, "_rows", lambda: changed)
    page = cast("Page", SimpleNamespace(file=SimpleNamespace(src_uri=docs_hooks.LANDING)))
    text = docs_hooks.on_page_markdown(docs_hooks.ROWS, page)
    html = markdown.markdown(text, extensions=["tables", "attr_list", "md_in_html"])
    cells = [cell.partition("</td>")[0] for cell in html.split("<td")[1:]]
    assert len(cells) == 6
    assert '<svg class="area"' in html
    assert "<img" not in html
    assert "onclick=" not in html.replace("{: onclick=alert(1) }", "")
    links = set(re.findall(r'href="([^"]*)"', html))
    assert links == {"board/index.html#row-1"}


def test_the_landing_page_starts_with_the_linf_track_and_numbers_rows_as_the_board_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = cast("Page", SimpleNamespace(file=SimpleNamespace(src_uri=docs_hooks.LANDING)))
    monkeypatch.chdir(ROOT)
    docs_hooks._rows.cache_clear()
    text = docs_hooks.on_page_markdown(docs_hooks.ROWS, page)
    (_, board), (path, report) = islice(docs_hooks._board(), 2)
    assert f"<code>dent verify {Path(path).parent.as_posix()}" in report
    on_board = re.findall(r'id="row-(\d+)">\n<th[^>]*><span class="number">\d+</span> (.*)', board)
    on_landing = re.findall(
        r"^\| \[(\d+)\]\(board/index.html#row-\d+\) (.*?) \|", text, re.MULTILINE
    )
    assert len(on_landing) >= 29
    assert [(number, escape(unescape(name))) for number, name in on_board] == on_landing
    in_plots = re.findall(r'href="board/index.html#row-(\d+)"', text)
    assert set(in_plots) < {number for number, _ in on_landing}
    assert text.index("CIFAR-10, linf 8/255") < text.index("CIFAR-10, l2 0.5")
    assert "the shipped" not in text


def test_a_build_of_the_site_reads_the_records_of_the_board_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[Path] = []

    def list_no_rows(root: Path) -> tuple[()]:
        read.append(root)
        return ()

    monkeypatch.setattr(docs_hooks, "list_rows", list_no_rows)
    page = cast("Page", SimpleNamespace(file=SimpleNamespace(src_uri=docs_hooks.LANDING)))
    for build in (1, 2):
        docs_hooks.on_pre_build(MkDocsConfig())
        assert [name for name, _ in docs_hooks._board()] == ["board/index.html"]
        assert docs_hooks.on_page_markdown(docs_hooks.ROWS, page) == "No rows yet."
        assert [folder.resolve() for folder in read] == [ROOT / "board"] * build
    docs_hooks._rows.cache_clear()


def _named(row: Any, name: str, trust: str) -> Any:
    """Return a row with another name and trust."""
    plain = {
        key: getattr(row, key)
        for key in ("void", "track", "cost", "headline", "difference", "natural")
    }
    return SimpleNamespace(**plain, ruling=row.ruling, name=name, trust=trust)
