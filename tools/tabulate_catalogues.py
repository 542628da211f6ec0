"""Rewrite `tables/torchvision.json` and `tables/timm.json` with the names of the installed models.

    python tools/tabulate_catalogues.py

With these tables, `dent` can refuse a misspelled model and complete a name without loading torch.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from dent import models
from dent.models.timm_source import Timm
from dent.models.torchvision_source import Torchvision

FOLDER: Final = Path(models.__file__).parent / "tables"


def tabulate_torchvision() -> dict[str, Any]:
    """Return the table of all models of the installed torchvision, without tags."""
    # Without the patch number, because patch releases add no models.
    release = version("torchvision").rpartition(".")[0]
    models = {name: [""] for name in _short(Torchvision().names())}
    return {"version": release, "models": models}


def tabulate_timm() -> dict[str, Any]:
    """Return the table of all models of the installed timm, with the tags of their weights."""
    import timm  # noqa: PLC0415 - an extra

    models: dict[str, list[str]] = {name: [] for name in timm.list_models()}
    for name in _short(Timm().names()):
        model, _, tag = name.partition(".")
        models[model].append(tag)
    return {"version": version("timm"), "models": models}


def _short(names: tuple[str, ...]) -> list[str]:
    return [name.partition("/")[2] for name in names]


if __name__ == "__main__":
    for table in (tabulate_torchvision, tabulate_timm):
        name = table.__name__.removeprefix("tabulate_")
        (FOLDER / f"{name}.json").write_text(json.dumps(table(), separators=(",", ":")) + "\n")
