"""The command line, end to end, on real images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = (
    "from torch import nn\n"
    "import torch\n"
    "def small():\n"
    "    torch.manual_seed(0)\n"
    "    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(),\n"
    "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))\n"
)


def dent(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dent", *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(SMALL)
    return tmp_path


EVALUATE = (
    *("evaluate", "--model", "mine:small", "--n", "12", "--batch-size", "6", "--iterations", "2"),
    *("--eps", "4/255", "--defense", "dent+", "--defense", "own.json", "--device", "cpu"),
)


def test_evaluate_resumes_and_says_the_same(folder: Path) -> None:
    (folder / "own.json").write_text('{"steps": 2, "statistics": "test"}')
    first = dent(*EVALUATE, "--out", "run", "--json", cwd=folder)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert list(result["defenses"]) == ["static", "dent+", "own"]
    assert result["samples"] == 12
    for defense in result["defenses"].values():
        assert defense["natural"]["total"] == 12
        assert defense["worst"]["served"]["correct"] <= defense["natural"]["correct"]
    journal = (folder / "run" / "journal.jsonl").read_bytes()
    again = dent(*EVALUATE, "--out", "run", "--json", cwd=folder)
    assert json.loads(again.stdout)["defenses"] == result["defenses"]
    assert (folder / "run" / "journal.jsonl").read_bytes() == journal
    table = dent(*EVALUATE, "--out", "run", cwd=folder)
    assert "against static" in table.stdout.replace("\n", " ")
    assert "an upper bound" in " ".join(table.stdout.split())
    other = dent(*EVALUATE, "--seed", "1", "--out", "run", cwd=folder)
    assert other.returncode == 2
    assert "settings.seed" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("evaluate", "--model", "resnet18-nominel"), "resnet18-nominal"),
        (("evaluate", "--model", "resnet-26-4"), "weights"),
        (("evaluate", "--model", "mine:small", "--eps", "much"), "much"),
        (("evaluate", "--model", "mine:small", "--defense", "dnet"), "dent"),
        (("evaluate", "--model", "mine:small", "--defense", "no.json"), "no.json"),
        (("evaluate", "--model", "mine:small", "--attack", "apgd"), "apgd-ce"),
        (("evaluate", "--model", "mine:small", "--device", "abacus"), "abacus"),
        (("evaluate", "--model", "mine:small", "--dataset", "cifar-sample"), "cifar10-sample"),
        (("data", "cifar100000"), "cifar10"),
    ],
)
def test_refusals_are_one_message(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    refused = dent(*arguments, cwd=folder)
    assert refused.returncode == 2
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not refused.stdout


def test_models_and_data_as_json(folder: Path) -> None:
    (entry,) = json.loads(dent("models", "--json", cwd=folder).stdout)
    assert entry["name"] == "resnet18-nominal"
    assert entry["present"] is True
    bundled = json.loads(dent("data", "cifar10-sample", "--json", cwd=folder).stdout)
    assert bundled["source"] == "bundled"
    assert Path(bundled["files"][0]).is_file()
