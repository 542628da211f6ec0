"""The report in CSV and JSON, for programs."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any, Final

from dent.report.commands import commands
from dent.report.flags import Flags
from dent.report.limits import limits
from dent.report.loading import NamedRun
from dent.report.rows import COLUMNS, rows
from dent.report.series import find_series
from dent.support.printable import printable

FORMAT: Final = "dent-report"
VERSION: Final = 1
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def to_csv(runs: Sequence[NamedRun]) -> str:
    """Return CSV with one line for every number, and the columns of `rows.COLUMNS`.

    A text that a spreadsheet would read as a formula gets a leading apostrophe.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows(runs, Flags(runs)):
        writer.writerow({key: _plain(value) for key, value in row.items()})
    return text.getvalue()


def to_json(runs: Sequence[NamedRun]) -> str:
    """Return a JSON document with the keys that docs/evaluation/reading-a-report.md lists."""
    flags = Flags(runs)
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "runs": [_run(run) for run in runs],
        "flags": {flag.name: flag.sentence for flag in flags.all},
        "rows": rows(runs, flags),
        "series": [
            {
                "over": series.over,
                "label": series.label,
                "places": [
                    {"run": place.run.name, "value": place.value, "text": place.text}
                    for place in series.places
                ],
            }
            for series in find_series(runs)
        ],
    }
    text = json.dumps(document, indent=1, allow_nan=False).replace("\x7f", r"\u007f")
    return f"{text}\n"


def _run(run: NamedRun) -> dict[str, Any]:
    typed = commands(run.loaded)
    return {
        "name": run.name,
        "folder": str(run.loaded.path),
        "limits": list(limits(run.result)),
        "commands": {
            "again": typed.again,
            "caveats": list(typed.caveats),
            "verify": typed.verify,
        },
        "result": run.result.to_json(),
    }


def _plain(value: str | float | None) -> str | float | None:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if value.startswith(_FORMULA) else text
