"""Test `dent demo` with a small model and few images."""

import json
import re
from pathlib import Path

import pytest

from dent.cli.commands import demo
from dent.support.durations import duration
from tests.cli import here

MODEL = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()
"""
README = Path(__file__).parents[2] / "README.md"


def test_demo_reports_static_and_defended_accuracy_intervals_and_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_shown.py").write_text(MODEL)
    monkeypatch.setattr(demo, "MODEL", "own_shown:small")
    monkeypatch.setattr(demo, "SAMPLES", 8)
    monkeypatch.chdir(tmp_path)
    ran = here.dent("demo")
    assert ran.code == 0, ran.err
    assert re.search(r"This run takes about \d+", ran.err), "what it will take is measured before"
    result = json.loads(Path("runs/demo/result.json").read_text())
    static, defended = result["defenses"]["static"], result["defenses"]["dent+"]
    assert len(result["defenses"]) == 2
    number = r"(\d+(?:\.\d+)?)"
    shown = [tuple(map(float, found)) for found in re.findall(rf"\[{number}, {number}\]", ran.out)]
    for each in (static, defended):
        ends = tuple(100 * end for end in each["worst"]["served"]["interval"])
        assert any(found == pytest.approx(ends, abs=0.5) for found in shown)
    assert f"Computed in {duration(result['timing']['total'])}. These are 8 images" in ran.out
    assert "not how robust this defense is" in ran.out
    assert defended["verdict"]["ruling"] == "no gain", "its model guesses"
    assert defended["verdict"]["sentence"] in ran.out.replace("\n", " ")
    assert Path("runs/demo/report.html").is_file()
    assert Path("runs/demo/figure.png").is_file()
    Path("runs/demo/report.html").unlink()
    again = here.dent("demo", "--json")  # reads the finished run
    assert json.loads(again.out) == result
    assert Path("runs/demo/report.html").is_file()


def test_the_readme_has_a_row_for_each_defense_of_the_demo() -> None:
    table = README.read_text().partition("`make demo` printed this")[2].partition("\n\n|")[2]
    rows = [line.split("|")[1].strip() for line in table.partition("\n\n")[0].splitlines()[1:]]
    assert [row for row in rows if row.strip("-")] == ["static", *demo.DEFENSES]
