"""Write a report in the format that the suffix of its file name selects."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from dent.errors import ConfigError
from dent.report.formats import to_csv, to_json
from dent.report.html import to_html
from dent.report.loading import NamedRun, load_runs
from dent.report.markdown import to_markdown
from dent.storage.disk import write_atomically, writing
from dent.storage.protected import refuse_record
from dent.support.printable import encodable
from dent.support.suggest import closest

FORMATS: Final[Mapping[str, Callable[[Sequence[NamedRun]], str]]] = {
    ".html": to_html,
    ".md": to_markdown,
    ".csv": to_csv,
    ".json": to_json,
}
"""The formats, by the suffix of the file."""


def write_report(runs: Sequence[Path], out: Path, *, data_root: Path | None = None) -> Path:
    """Write a report on one run, or on several side by side, from their records.

    The runs are only read. A run may still be in progress; the report says so. Runs that differ in
    only one setting (such as eps or batch size) are also shown as a series over it. Equal records
    give an equal report.

    Args:
        runs: Run folders, in the order in which they are shown. The folder of a sweep counts as
            all of its started runs.
        out: The file to write, replaced if it exists. `.html`: one page that needs no other file,
            no network and no script. `.md`, `.csv`, `.json`: see
            docs/evaluation/reading-a-report.md.
        data_root: Folder of datasets, for the natural images of the page's gallery; by default that
            of `dent.data`. Nothing is downloaded.

    Returns:
        `out`.

    Raises:
        ConfigError: The suffix is unknown, no run is given, one is given twice, or `out` is one of
            the records of a run.
        RecordError: A run cannot be read, or `out` cannot be written.
        SchemaVersionError: A run was written by a newer torch-dent.
    """
    out = Path(out)
    if out.suffix.lower() not in FORMATS:
        raise ConfigError(_unknown(out))
    refuse_record(out)
    loaded = load_runs([Path(run) for run in runs])
    if out.suffix.lower() == ".html":
        text = to_html(loaded, data_root=data_root)
    else:
        text = FORMATS[out.suffix.lower()](loaded)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, encodable(text).encode())
    return out


def _unknown(out: Path) -> str:
    near = closest(out.suffix, FORMATS)
    hint = f"; did you mean {out.with_suffix(near).name!r}?" if near else ""
    return f"a report's file name must end in {', '.join(FORMATS)}, got {out.name!r}{hint}"
