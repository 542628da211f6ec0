"""Pages of the documentation that have results between markers."""

from collections.abc import Iterable
from pathlib import Path


def markers(name: str) -> tuple[str, str]:
    """Return the markers of a name."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def write_between(page: Path, name: str, blocks: Iterable[str]) -> None:
    """Replace what a page has between the markers of a name.

    Args:
        page: The page, in Markdown.
        name: The name in its markers.
        blocks: Blocks of text, such as tables; an empty line separates them.

    Raises:
        ValueError: The page has not exactly one of each marker, in this order.
    """
    begin, end = markers(name)
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end)
    page.write_text("\n\n".join([f"{before}{begin}", *blocks, f"{end}{after}"]))
