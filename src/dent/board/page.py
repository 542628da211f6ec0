"""Make the page of the board from the records: one file that needs no other file or network."""

import base64
import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from markupsafe import Markup

from dent.board.board_row import BoardRow
from dent.board.plots import LOOKS, scatters
from dent.board.table import columns_for, have_views, line
from dent.board.tracks import HEADLINE, NOT_OF_THE_BOARD
from dent.report.html import environment, to_html
from dent.report.loading import NamedRun
from dent.storage.disk import write_atomically
from dent.storage.protected import refuse_record

REPORT: Final = "report.html"
"""Name of the report beside the records of a row's headline run."""


def write_page(rows: Sequence[BoardRow], out: Path, reports: Collection[Path] = ()) -> None:
    """Write the page.

    Args:
        rows: The rows, in the order in which they are first shown.
        out: The file. Links to reports are relative to its folder.
        reports: The paths of the reports to link, as `write_reports` returned them.

    Raises:
        ConfigError: The page would replace one of the records of a run or row.
        RecordError: The file cannot be written.
    """
    refuse_record(out)
    write_atomically(out, to_page(rows, out.parent, reports).encode())


def write_reports(rows: Sequence[BoardRow], data_root: Path | None = None) -> tuple[Path, ...]:
    """Write the report of each row's headline run beside its records, and return their paths.

    Args:
        rows: The rows.
        data_root: Folder of the datasets, for the images in the reports.

    Raises:
        RecordError: A report cannot be written.
    """
    for row in rows:
        write_atomically(report_path(row), to_report(row, data_root).encode())
    return tuple(map(report_path, rows))


def report_path(row: BoardRow) -> Path:
    """Return where the report of a row's headline run is written: beside its records."""
    return row.folder / HEADLINE / REPORT


def to_report(row: BoardRow, data_root: Path | None = None) -> str:
    """Return the report of a row's headline run, as HTML.

    Args:
        row: The row.
        data_root: Folder of the datasets, for the images in the report.
    """
    return to_html([NamedRun(row.name, row.headline.run)], data_root=data_root)


def to_page(rows: Sequence[BoardRow], base: Path, reports: Collection[Path] = ()) -> str:
    """Return the page.

    Args:
        rows: The rows, in the order in which they are first shown.
        base: The folder that links are relative to.
        reports: The paths of the reports to link. Others are not linked: a submitter may have
            written them.
    """
    columns = columns_for(rows)
    lines = [
        line(number, row, columns, _report_link(row, base, reports))
        for number, row in enumerate(rows, start=1)
    ]
    return (
        environment("dent.board")
        .get_template("board.html.j2")
        .render(
            rows=lines,
            tracks=list({row.track.name: row.track for row in rows}.values()),
            columns=columns,
            has_views=have_views(rows),
            charts=scatters(rows),
            nonces=list(dict.fromkeys(_nonces(rows))),
            not_of_the_board=NOT_OF_THE_BOARD,
            looks=LOOKS,
            script=Markup(_script()),  # noqa: S704 (a file of this package)
            script_hash=base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode(),
        )
    )


def _report_link(row: BoardRow, base: Path, reports: Collection[Path]) -> str | None:
    """Return the address of a row's report relative to a folder; None if it is not to be linked."""
    report = report_path(row)
    return Path(os.path.relpath(report, base)).as_posix() if report in reports else None


def _nonces(rows: Sequence[BoardRow]) -> Iterator[str]:
    """Yield each nonce with its source, where it is stated."""
    for row in rows:
        if row.nonce is not None and row.nonce_source is not None:
            yield f"{row.nonce[:16]}: {row.nonce_source}"


@cache
def _script() -> str:
    return files("dent.board").joinpath("templates/board.js").read_text("utf-8")
