"""Journals of measurements: one line of JSON for each, so that an interrupted run can continue."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record, on a line of its own even if the last line was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * torn + json.dumps(record) + "\n")


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield every complete record; one that was cut off is left out."""
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            continue
