"""End-to-end tests of the command line on image files and bundled images."""

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli import here
from tests.cli.process import dent

SMALL = (
    "from torch import nn\n"
    "import torch\n"
    "def small():\n"
    "    torch.manual_seed(0)\n"
    "    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(),\n"
    "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))\n"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setenv("DENT_DATA", str(tmp_path / "cache"))
    (tmp_path / "mine.py").write_text(SMALL)
    for label, name in enumerate(("circle", "line", "square")):
        (tmp_path / "shapes" / name).mkdir(parents=True)
        for at in range(2):
            image = Image.new("RGB", (40, 36), (40 * label, 80 * at, 120))
            image.save(tmp_path / "shapes" / name / f"{at}.png")
    return tmp_path


def test_image_folder_is_evaluated_and_its_digest_is_recorded(folder: Path) -> None:
    (folder / "mine.py").write_text(SMALL.replace("Linear(8, 10)", "Linear(8, 3)"))
    ran = dent(
        *("evaluate", "--model", "mine:small", "--dataset", "imagefolder-c32", "--data", "shapes"),
        *("--batch-size", "6", "--order", "by-class", "--iterations", "1", "--defense", "dent+"),
        *("--eps", "4/255", "--device", "cpu", "--out", "run", "--json"),
        cwd=folder,
    )
    assert ran.returncode == 0, ran.stderr
    recorded = json.loads((folder / "run" / "run.json").read_text())["spec"]["dataset"]
    fetched = here.dent("data", "imagefolder-c32", "--data", "shapes", "--json")
    assert recorded["digest"] == json.loads(fetched.out)["digests"]["test"]
    assert recorded["classes"] == ["circle", "line", "square"]
    assert (recorded["name"], recorded["size"]) == ("imagefolder-c32", 6)
    verified = here.dent("verify", "run", "--data", "shapes", "--device", "cpu", "--allow-code")
    assert verified.code == 0, verified.out + verified.err


@pytest.mark.parametrize("option", ["--data", "--data-root", "--root"])
def test_dent_data_reads_the_folder_that_is_named(folder: Path, option: str) -> None:
    fetched = here.dent("data", "imagefolder-c32", option, "shapes", "--json")
    assert fetched.code == 0, fetched.err
    assert json.loads(fetched.out)["path"].endswith("shapes")


EVALUATE = (
    *("evaluate", "--model", "mine:small", "--n", "12", "--batch-size", "6", "--iterations", "2"),
    *("--eps", "4/255", "--defense", "dent+", "--defense", "own.json", "--device", "cpu"),
)


def test_repeated_evaluate_keeps_the_records_and_refuses_other_settings(folder: Path) -> None:
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
    again = here.dent(*EVALUATE, "--out", "run", "--json")
    assert json.loads(again.out)["defenses"] == result["defenses"]
    assert (folder / "run" / "journal.jsonl").read_bytes() == journal
    table = here.dent(*EVALUATE, "--out", "run")
    assert "against static" in table.out.replace("\n", " ")
    assert "an upper bound" in " ".join(table.out.split())
    other = here.dent(*EVALUATE, "--seed", "1", "--out", "run")
    assert other.code == 2
    assert "settings.seed" in other.err


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
        (("evaluate", "--model", "Ding2020MMA"), "robustbench/cifar10/L2/Ding2020MMA"),
        (("evaluate", "--model", "mine:small", "--dataset", "imagefolder-32"), "r256-c224"),
        (("evaluate", "--model", "mine:small", "--dataset", "cifar10-c/fog/6"), "from 1 to 5"),
        (("evaluate", "--dataset", "imagefolder-c32", "--data", "shapes"), "has 10 classes"),
        (
            (
                "evaluate",
                "--model",
                "mine:small",
                "--dataset",
                "imagefolder-c32",
                "--data",
                "shapes",
            ),
            "returns 10 classes, the dataset has 3",
        ),
        (
            ("data", "imagenet", "--data-root", "shapes"),
            "there is no test split in shapes or shapes/imagenet",
        ),
        (("data", "cifar100000"), "cifar10"),
    ],
)
def test_invalid_arguments_exit_with_2_and_a_message_without_traceback(
    folder: Path, arguments: tuple[str, ...], says: str
) -> None:
    refused = here.dent(*arguments)
    assert refused.code == 2
    assert says in refused.err
    assert "Traceback" not in refused.err
    assert not refused.out


def test_models_and_data_commands_print_json(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENT_MODELS", str(folder / "models"))
    listed = {entry["name"]: entry for entry in json.loads(here.dent("models", "--json").out)}
    assert listed["resnet18-nominal"]["present"] is True
    told = here.dent("models").out
    facts = r"resnet-14-2-l2\n    cifar10, l2 0\.5, on this machine \(2\.7 MB\) *\n    clean "
    assert re.search(facts, told)
    carmon = listed["robustbench/cifar10/Linf/Carmon2019Unlabeled"]
    assert carmon["present"] is False
    assert carmon["file"].endswith("robustbench/cifar10/Linf/Carmon2019Unlabeled.pt")
    found = json.loads(here.dent("models", "wu2020", "--source", "robustbench", "--json").out)
    assert {entry["name"].rpartition("/")[2] for entry in found} == {
        "Wu2020Adversarial",
        "Wu2020Adversarial_extra",
    }
    bundled = json.loads(here.dent("data", "cifar10-sample", "--json").out)
    assert bundled["source"] == "bundled"
    assert Path(bundled["files"][0]).is_file()
