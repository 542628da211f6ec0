"""MkDocs hooks: pages from files outside docs/, their links, and a check of the built site.

README, CHANGELOG, CONTRIBUTING and the like, and the examples, are outside docs/, and become pages
without a copy. Their links work in the repository. Here, each link is replaced by one to the page
of its file, or by plain text if the site has no page for the file.
"""

import html
import os
import posixpath
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from dent.board.board_row import BoardRow
from dent.board.listing import list_rows
from dent.board.page import report_path, to_page, to_report
from dent.board.plots import plots_style, to_plots
from dent.report import wording
from dent.report.markdown import escape
from dent.support.rounding import factor

ROOT = Path(__file__).parents[1]
#: Files of the repository by the page that each becomes.
PAGES = {
    "overview.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "code-of-conduct.md": "CODE_OF_CONDUCT.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
} | {f"examples/{path.stem}.md": f"examples/{path.name}" for path in ROOT.glob("examples/*.py")}
BOARD = "docs/board/index.html"
"""The page of the board, which is generated from board/."""
LANDING, ROWS = "index.md", "<!-- board -->"
"""The landing page, and the start of what the plots and rows of the board replace in it."""
PLOTS_STYLE = "stylesheets/plots.css"
"""The style sheet of these plots, which is generated from that of the board's page."""
NOTEBOOK, BADGE = "This page as a notebook", "![Open in Colab](../figures/colab.svg)"
"""Text of the link to a notebook, and the badge in its place on the published site."""
COLAB = "https://colab.research.google.com/github"
"""Address at which Colab opens a notebook of a public GitHub repository."""
_BECOMES = {file: page for page, file in PAGES.items()}
_LINK = re.compile(r"(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_NOTEBOOK = re.compile(rf"\[{NOTEBOOK}\]\((?:\.\./)*notebooks/([\w-]+\.ipynb)\)")
_MARKED = re.compile(rf"{ROWS}(.*<!-- end of the board -->)?", re.DOTALL)
_ROWS = 'class="rows" markdown="1"'
_HEAD = "| defense | verdict | robust, against its base | clean, against its base | cost | trust |"
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LOADED = re.compile(  # what a browser loads by itself, unlike an <a>
    r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?(?:https?:)?//[^\s>]+"
    r"|<link[^>]*rel=[\"']?(?:stylesheet|preconnect|preload|icon)[^>]*href=[\"']?(?:https?:)?//[^\s>]+"
    r"|(?:url\([\"']?|@import [\"'])(?:https?:)?//[^\s)]+"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of files outside docs/, those of the board, and the style of its plots."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith(".py"):
            text = f"# {Path(source).name}\n\n```python\n{text}```\n"
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, PLOTS_STYLE, content=plots_css()))
    for page, text in _board():
        files.append(File.generated(config, page, content=text))
    return files


def plots_css() -> str:
    """Return the style sheet of the plots on the landing page, in light and dark mode."""
    return plots_style(".md-typeset .plots", "[data-md-color-scheme=slate]")


def on_pre_build(config: MkDocsConfig) -> None:
    """Forget the rows of the last build, which `mkdocs serve` follows by others."""
    _rows.cache_clear()


def _board() -> Iterator[tuple[str, str]]:
    """Yield the page of the board and the report of each row, from the records in board/."""
    rows, folder = _rows(), _folder()
    reports = {report_path(row): row for row in rows}
    yield "board/index.html", to_page(rows, folder, reports)
    for path, row in reports.items():
        yield (Path("board") / path.relative_to(folder)).as_posix(), to_report(row)


@cache
def _rows() -> tuple[BoardRow, ...]:
    """Return the rows of the board; reads the records once a build."""
    return list_rows(_folder())


def _folder() -> Path:
    """Return board/ relative to the current folder, because reports name the folder of a run."""
    return Path(os.path.relpath(ROOT / "board"))


def _landing() -> Iterator[str]:
    """Yield the plots and rows of the board as HTML and Markdown, with a table for each track.

    All tables but the first are collapsed. Strangers choose the names in a row, so every cell is
    escaped.
    """
    rows = [(number, row) for number, row in enumerate(_rows(), start=1)]
    shown = [(number, row) for number, row in rows if row.void is None]
    if not shown:
        yield "No rows yet."
        return
    page = BOARD.removeprefix("docs/")
    yield to_plots([row for _, row in rows], page)
    first = shown[0][1].track
    for track in dict.fromkeys(row.track.label for _, row in shown):
        if track != first.label:
            opening, closing = (
                f"<details {_ROWS}><summary>{html.escape(track)}</summary>",
                "</details>",
            )
        else:
            opening, closing = f"<div {_ROWS}>\n\n**{escape(track)}**", "</div>"
        yield from (opening, "", _HEAD, "| --- | --- | ---: | ---: | ---: | --- |")
        for number, row in shown:
            if row.track.label == track:
                cells = " | ".join(map(escape, _cells(row)))
                yield f"| [{number}]({page}#row-{number}) {cells} |"
        yield from ("", closing, "")


def _cells(row: BoardRow) -> tuple[str, ...]:
    """Return the cells of a row; the board's page says how many attacks were run again."""
    robust = wording.bound(wording.difference(row.difference), row.headline.decided)
    clean = wording.difference(row.natural)
    return (
        row.name,
        row.ruling,
        robust or "the reference",
        clean or "the reference",
        "" if row.cost is None else factor(row.cost),
        re.sub(r"^re-attacked \([^)]*\)", "re-attacked", row.trust),
    )


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Replace every link to a file of the repository by one to its page."""
    here = page.file.src_uri
    source = PAGES.get(here, f"docs/{here}")
    kept: list[str] = []

    def put_aside(fence: re.Match[str]) -> str:
        kept.append(fence[0])
        return f"\0{len(kept) - 1}\0"

    text = _FENCE.sub(put_aside, markdown)
    text = _LINK.sub(lambda link: _turned(link, source, here), text)
    if repository := os.environ.get("GITHUB_REPOSITORY"):  # set in the job that publishes the site
        text = _NOTEBOOK.sub(rf"[{BADGE}]({COLAB}/{repository}/blob/main/docs/notebooks/\1)", text)
    text = re.sub(r"\0(\d+)\0", lambda index: kept[int(index[1])], text)
    # The rows come last: what looks like a link in a name is none.
    return _MARKED.sub(lambda _: "\n".join(_landing()), text) if here == LANDING else text


def _turned(link: re.Match[str], source: str, here: str) -> str:
    target, _, anchor = link["target"].partition("#")
    if not target or "://" in target or target.startswith("mailto:"):
        return link[0]
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if file != BOARD and not (ROOT / file).exists():
        raise PluginError(f"{source} links to {link['target']}, and there is no {file}")
    if file in _BECOMES:
        page = _BECOMES[file]
    elif file.startswith("docs/"):
        page = file.removeprefix("docs/")
    else:  # the site has no page for it
        return link["text"]
    turned = posixpath.relpath(page, posixpath.dirname(here) or ".")
    return f"{link['mark']}[{link['text']}]({turned}{'#' if anchor else ''}{anchor})"


def on_post_build(config: MkDocsConfig) -> None:
    """Check that the site loads nothing from other hosts.

    Raises:
        PluginError: A page would load from another host.
    """
    for folder, _, names in os.walk(config.site_dir):
        for path in (Path(folder) / name for name in names if name.endswith((".html", ".css"))):
            if found := _LOADED.search(path.read_text(encoding="utf-8")):
                raise PluginError(f"{path} would load from another host: {found[0]}")
