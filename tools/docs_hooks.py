"""MkDocs hooks: pages from files outside docs/, their links, and a check of the built site.

README, CHANGELOG, CONTRIBUTING and the like, and the examples, are outside docs/, and become pages
without a copy. Their links work in the repository. Here, each link is replaced by one to the page
of its file, or by plain text if the site has no page for the file.
"""

import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from dent.board.listing import list_rows
from dent.board.page import gain_of, write_page, write_reports
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
"""The landing page, and the marker in it that the rows of the board replace."""
COLAB = "https://colab.research.google.com/github"
"""Address at which Colab opens a notebook of a public GitHub repository."""
_BECOMES = {file: page for page, file in PAGES.items()}
_LINK = re.compile(r"(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_NOTEBOOK = re.compile(r"\]\((?:\.\./)*notebooks/([\w-]+\.ipynb)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LOADED = re.compile(  # what a browser loads by itself, unlike an <a>
    r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?(?:https?:)?//[^\s>]+"
    r"|<link[^>]*rel=[\"']?(?:stylesheet|preconnect|preload|icon)[^>]*href=[\"']?(?:https?:)?//[^\s>]+"
    r"|(?:url\([\"']?|@import [\"'])(?:https?:)?//[^\s)]+"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of files outside docs/, and those of the board."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith(".py"):
            text = f"# {Path(source).name}\n\n```python\n{text}```\n"
        files.append(File.generated(config, page, content=text))
    for page, text in _board():
        files.append(File.generated(config, page, content=text))
    return files


def _board() -> Iterator[tuple[str, str]]:
    """Yield the page of the board and the report of each row, from the records in board/."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "board"
        shutil.copytree(ROOT / "board", folder)
        rows = list_rows(folder)
        reports = write_reports(rows)
        write_page(rows, folder / "index.html", reports)
        for path in sorted((folder / "index.html", *reports)):
            yield path.relative_to(temporary).as_posix(), path.read_text(encoding="utf-8")


def _rows() -> Iterator[str]:
    """Yield the rows of the board as Markdown tables, one for each track.

    Strangers choose the names in a row, so every cell is escaped.
    """
    track = None
    for row in (row for row in list_rows(ROOT / "board") if row.void is None):
        if row.track != track:
            track = row.track
            yield from ("", f"**{track.title}**", "")
            yield "| defense | verdict | against its base | cost | trust |"
            yield "| --- | --- | ---: | ---: | --- |"
        cost = "" if row.cost is None else factor(row.cost)
        gain = gain_of(row.headline) if row.difference else "the reference"
        cells = (row.name, row.ruling, gain, cost, row.trust)
        yield f"| {' | '.join(map(escape, cells))} |"
    if track is None:
        yield "No rows yet."


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
        text = _NOTEBOOK.sub(rf"]({COLAB}/{repository}/blob/main/docs/notebooks/\1)", text)
    text = re.sub(r"\0(\d+)\0", lambda index: kept[int(index[1])], text)
    # The rows come last: what looks like a link in a name is none.
    return text.replace(ROWS, "\n".join(_rows())) if here == LANDING else text


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
