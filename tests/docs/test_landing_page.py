"""The rows of the board on the landing page: names that strangers chose are shown as text."""

import re
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import markdown
import pytest

from dent.board.listing import list_rows
from dent.report.markdown import escape
from tools import docs_hooks

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
NAMES = ("<img src=x onerror=alert(1)> a|b", "x {: onclick=alert(1) }", "[a](javascript:b)")


@pytest.mark.parametrize("name", NAMES)
def test_names_of_foreign_rows_are_text_on_the_landing_page(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(row for row in list_rows(ROOT / "board") if row.difference is not None)
    changed = [_named(row, name, f"claimed, broken by {name}")]
    monkeypatch.setattr(docs_hooks, "list_rows", lambda _: changed)
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


def test_the_landing_page_starts_with_the_linf_track_and_numbers_rows_as_the_board_does() -> None:
    page = cast("Page", SimpleNamespace(file=SimpleNamespace(src_uri=docs_hooks.LANDING)))
    text = docs_hooks.on_page_markdown(docs_hooks.ROWS, page)
    board = dict(docs_hooks._board())["board/index.html"]
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


def _named(row: Any, name: str, trust: str) -> Any:
    """Return a row with another name and trust."""
    plain = {
        key: getattr(row, key)
        for key in ("void", "track", "cost", "headline", "difference", "natural")
    }
    return SimpleNamespace(**plain, ruling=row.ruling, name=name, trust=trust)
