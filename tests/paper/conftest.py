"""Fixtures: a table and a scale that are small enough for a test, on a tiny network."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dent.paper import PaperPlan, Scale, Table, plan_table, planning, run_plans
from dent.paper.load import read_spec
from dent.paper.runner import Loader
from dent.paper.scales import Chosen

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = f"""
from safetensors.torch import load_file
from torch import nn

def make():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    model.load_state_dict(load_file({str(GOLDEN / "tiny_cnn.safetensors")!r}))
    return model.eval()
"""
COLUMNS: list[dict[str, Any]] = [
    {"id": "natural", "label": "NATURAL", "measure": "natural", "defense": "static"},
    {"id": "static", "label": "STATIC", "defense": "static"},
    {"id": "dent", "label": "DENT", "defense": "dent-nominal steps=2"},
    {
        "id": "denied",
        "label": "DENIED",
        "measure": "transfer",
        "defense": "dent-nominal steps=2",
    },
]
TABLE: dict[str, Any] = {
    "id": "tiny",
    "title": "A small table",
    "source": "Table 0",
    "section": "0",
    "notes": ["A note."],
    "columns": COLUMNS,
    "rows": [
        {
            "id": "small",
            "group": "ε∞",
            "label": "SMALL",
            "model": "small",
            "threat": "linf 1/255",
            "published": ["90.0", "10.0", "40.0", "-"],
        },
        {
            "id": "again",
            "group": "ε∞",
            "label": "AGAIN",
            "note": "of another name",
            "model": "again",
            "threat": "linf 1/255",
            "published": ["90.1", "10.1", "40.1", ""],
        },
    ],
    "claims": [
        {
            "id": "improves",
            "says": "Dent improves.",
            "kind": "higher",
            "rows": ["small", "again"],
            "columns": ["dent", "static"],
        },
        {
            "id": "breaks",
            "says": "It breaks.",
            "kind": "at-most",
            "bound": 99.0,
            "cells": ["small/static"],
        },
    ],
    "charts": [
        {
            "title": "By column",
            "x_label": "defense",
            "along": "columns",
            "rows": ["small"],
            "columns": ["static", "dent"],
        }
    ],
    "suite": {"cells": ["small/dent"]},
}
SCALE: dict[str, Any] = {
    "id": "tiny",
    "says": "Eight images.",
    "samples": 8,
    "batch_size": 4,
    "suite": {"budget": "small", "samples": 2, "batch_size": 2},
    "attacks": {"autoattack": {"apgd-ce": "apgd-ce:iterations=2", "square": "square:iterations=2"}},
}

NO_SUITE: dict[str, Any] = {"suite": {"cells": []}}
OUT = Path("out")

MakePlan = Callable[..., PaperPlan]


@pytest.fixture
def make_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePlan:
    """Return a function that plans the small table, with changed fields of the scale or table."""
    return _make_plan(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete run of the small table, without the suite."""
    folder, before = tmp_path_factory.mktemp("finished"), Path.cwd()
    with pytest.MonkeyPatch.context() as monkeypatch:
        plan = _make_plan(folder, monkeypatch)(**NO_SUITE)
        assert run_plans([plan], OUT, Loader(torch.device("cpu"))) == {}
    os.chdir(before)
    return folder / OUT


@pytest.fixture
def finished(make_plan: MakePlan, finished_once: Path) -> PaperPlan:
    """The plan of the small table, whose finished runs are copied to the current folder."""
    shutil.copytree(finished_once, OUT)
    return make_plan(**NO_SUITE)


def _make_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> MakePlan:
    (folder / "paper_model.py").write_text(MODEL)
    monkeypatch.chdir(folder)

    def choose(scale: Scale, role: str, *_: object) -> Chosen:
        del scale
        return Chosen("paper_model:make", None, "cifar10-sample", role if role == "again" else "")

    monkeypatch.setattr(planning, "choose", choose)
    # The page reads from models.toml which model of the paper a stand-in replaces.
    monkeypatch.setattr("dent.paper.page.load_roles", lambda: {"again": _Named, "small": _Named})

    def made(scale: dict[str, Any] | None = None, **table: Any) -> PaperPlan:
        tables = read_spec(Table, "tiny", TABLE | table)
        return plan_table(tables, read_spec(Scale, "tiny", SCALE | (scale or {})))

    return made


class _Named:
    paper = "another model"


@pytest.fixture
def loader() -> Loader:
    return Loader(torch.device("cpu"))
