"""The rows of the board on the landing page: names that strangers chose are shown as text."""

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import markdown
import pytest

from dent.board.listing import list_rows
from tools import docs_hooks

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
NAMES = ("<img src=x onerror=alert(1)> a|b", "x {: onclick=alert(1) }", "[a](javascript:b)")


@pytest.mark.parametrize("name", NAMES)
def test_names_of_foreign_rows_are_text_on_the_landing_page(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = list_rows(ROOT / "board")[0]
    changed = [_named(row, name, f"claimed, broken by {name}")]
    monkeypatch.setattr(docs_hooks, "list_rows", lambda _: changed)
    page = cast("Page", SimpleNamespace(file=SimpleNamespace(src_uri=docs_hooks.LANDING)))
    text = docs_hooks.on_page_markdown(docs_hooks.ROWS, page)
    html = markdown.markdown(text, extensions=["tables", "attr_list", "md_in_html"])
    cells = [cell.partition("</td>")[0] for cell in html.split("<td")[1:]]
    assert len(cells) == 5
    assert "<img" not in html
    assert "onclick=" not in html.replace("{: onclick=alert(1) }", "")
    assert "href" not in html


def _named(row: Any, name: str, trust: str) -> Any:
    """Return a row with another name and trust."""
    plain = {key: getattr(row, key) for key in ("void", "track", "cost", "headline", "difference")}
    return SimpleNamespace(**plain, ruling=row.ruling, name=name, trust=trust)
