"""The code of README and tutorials runs and does what the text says; local links exist."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from dent import DENT_PLUS, Dent, DentConfig, Status, data, entropy, models
from dent.serving.loading import load_server
from dent.serving.options import ServerOptions
from dent.serving.responses import respond
from tests.cli.here import dent
from tests.small_models import make_tiny_cnn

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
ROOT_PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Return a module to run a page's code blocks in; the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    return module


def run(path: Path, page: ModuleType) -> dict[str, Any]:
    """Run a page's Python blocks in order, and return the names that they define."""
    text = path.read_text()
    blocks = [*re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    assert blocks
    for block in blocks:
        lines = "\n" * text[: block.start(1)].count("\n")  # so that errors name the page's line
        exec(compile(lines + block[1], str(path), "exec"), vars(page))  # noqa: S102
    return vars(page)


def test_the_code_of_the_readme_does_what_its_text_says(page: ModuleType) -> None:
    model, images = make_tiny_cnn().eval(), torch.rand(4, 3, 16, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    labels = model(images).argmax(1)
    vars(page).update(model=model, images=images, labels=labels)
    names = run(ROOT / "README.md", page)
    served = names["result"].defenses["dent+"].worst.served
    assert served.total == 4
    assert names["adversarial"].shape == images.shape
    assert float((names["adversarial"] - images).abs().max()) <= 8 / 255 + 1e-6
    assert torch.equal(names["logits"], Dent(model, DENT_PLUS)(images))
    assert names["adaptation"].entropy.shape == (6, 4)
    assert names["adaptation"].status.tolist() == [Status.ADAPTED] * 4
    assert all(value.requires_grad is False for value in names["adaptation"].parameters.values())
    assert torch.equal(names["static"], model(images))
    assert names["model"] is model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs" / "serving.md"])
def test_the_request_on_the_page_is_adapted_to_but_a_single_image_is_not(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The defense adapts to the batch that the page sends, but not to a single image of it."""
    monkeypatch.chdir(tmp_path)
    page = path.read_text()
    command = re.search(r'^python -c "(.*)"$', page, re.MULTILINE)
    assert command is not None
    exec(command[1], {})  # noqa: S102
    first = re.search(r"--data-binary @(\S+)", page)
    assert first is not None
    batch = torch.from_numpy(np.load(first[1]))
    defended = Dent(models.load("resnet-14-2-linf"), DENT_PLUS)
    for images, moves in ((batch, True), (batch[:1], False)):
        adapted = defended(images)
        with defended.disabled():
            static = defended(images)
        assert (float((adapted - static).abs().max()) > 0.1) is moves


def test_the_response_on_the_page_is_the_third_of_its_batch() -> None:
    page = (ROOT / "docs" / "serving.md").read_text()
    block = re.search(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert block is not None
    shown = json.loads(block[1])
    batch, _ = data.load("cifar10-sample").batch(range(16))
    server = load_server(ServerOptions(dataset="cifar10-sample", threads=1))
    answer = server.engine.run(batch)
    response = respond(
        answer, classes=server.classes, configured=6, late=False, seconds=1.0, logits=False
    )
    third, (first,) = response.model_dump()["predictions"][2], shown["predictions"]
    assert third == pytest.approx(first, abs=0.01)
    assert shown.keys() == response.model_dump().keys()
    assert shown["steps"] == shown["steps_configured"] == response.steps


def test_the_code_of_the_defend_tutorial_does_what_its_text_says(
    page: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run(TUTORIALS / "defend.md", page)
    printed = capsys.readouterr().out
    entropy = names["adaptation"].entropy.mean(1)
    assert entropy.shape == (6,)
    assert entropy[-1] < entropy[0]
    assert torch.equal(names["same"], names["logits"])
    assert not torch.equal(names["static"], names["logits"])
    assert int(names["right"]) > 8
    assert f"{int(names['right'])} of 16 right" in printed
    assert "True False" in printed
    torch.testing.assert_close(names["in_batch"], names["by_itself"], rtol=1e-3, atol=1e-3)
    dependent = names["defended"]
    alone = dependent(names["images"][:1])
    assert not torch.allclose(names["logits"][:1], alone, rtol=1e-3, atol=1e-3)
    assert torch.equal(names["again"](names["images"]), names["logits"])
    assert Path("weights.safetensors").is_file()


def test_the_code_of_the_evaluate_tutorial_does_what_its_text_says(
    page: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run(TUTORIALS / "evaluate.md", page)
    printed = capsys.readouterr().out
    defense = names["defense"]
    assert (names["result"].samples, defense.worst.unit, defense.verdict) == (8, "batch", None)
    low, high = defense.difference.interval
    assert low < 0 < high
    assert "batch dependent" in {diagnostic.name for diagnostic in defense.raised}
    assert "batch dependent - " in printed
    assert {"attack", "transfer"} <= {attack.kind for attack in defense.attacks}
    assert names["checked"].status == "verified"
    assert "<html" in Path("report.html").read_text()


def test_the_code_of_the_bring_your_own_tutorial_does_what_its_text_says(
    page: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run(TUTORIALS / "bring-your-own.md", page)
    printed = capsys.readouterr().out
    assert "no normalization layer" in printed
    assert isinstance(names["defended"].config, DentConfig)
    mirror, descent, dent = (
        names["result"].defenses[name] for name in ("mirror", "descent", "dent+ (2 steps)")
    )
    assert [each.worst.unit for each in (mirror, descent, dent)] == ["sample", "sample", "batch"]
    for each in (mirror, descent):
        raised = {diagnostic.name for diagnostic in each.raised}
        assert not raised & {"undeclared dependence", "randomized", "zero gradient"}
    images = torch.rand(3, 3, 32, 32)
    moving = names["Descent"](names["model"])
    with torch.no_grad():
        certain = entropy(moving(images)).mean()
        assert certain < entropy(names["model"](images)).mean()
    exact = moving.adapt(images.requires_grad_(), differentiable=True)
    assert exact.requires_grad
    assert not moving.adapt(images).requires_grad
    torch.testing.assert_close(exact.detach(), moving.adapt(images))
    defense = names["Mirror"](names["model"])
    torch.testing.assert_close(defense(images), defense(images.flip(-1)))


def test_the_first_suite_of_the_bring_your_own_tutorial_is_inconclusive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Runs the page's command on `mine.py`, with fewer images than on the page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = (TUTORIALS / "bring-your-own.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    build = blocks[0].partition("model = build()")[0]
    (mirror,) = (block for block in blocks if "class Mirror" in block)
    Path("mine.py").write_text(build + mirror)
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # that of another test
    command = re.search(r"^dent (evaluate .*?--n 16 .*?)$\n```", text, re.MULTILINE | re.DOTALL)
    assert command is not None
    words = command[1].replace("\\\n", " ").replace("--n 16", "--n 4").split()
    ran = dent(*words, "--json")
    assert ran.code == 0, ran.err
    sys.modules.pop("mine")
    assert json.loads(ran.out)["defenses"]["mine:Mirror"]["verdict"]["ruling"] == "inconclusive"


@pytest.mark.slow
def test_the_code_of_the_break_a_defense_tutorial_does_what_its_text_says(
    page: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each attack leaves at most as many correct predictions as the one before it."""
    path = TUTORIALS / "break-a-defense.md"
    names = run(path, page)
    printed = capsys.readouterr().out.split()
    promised = [
        word
        for comment in re.findall(r"^ *print\(.*\) +# (.*)$", path.read_text(), re.MULTILINE)
        for word in comment.split()
    ]
    assert len(printed) == len(promised)
    for word, expected in zip(printed, promised, strict=True):
        if expected.isdigit():
            assert abs(int(word) - int(expected)) <= 1
        else:
            assert word == expected
    correct, defense = names["correct"], names["defense"]
    transfer, exact = correct(defense, names["transfer"]), correct(defense, names["exact"])
    assert names["apparent"] - names["static"] >= 3
    assert names["apparent"] > transfer >= exact >= names["left"]
    for batch in names["batches"]:
        assert not names["threat"].check(batch, names["images"]).any()


@pytest.mark.parametrize("name", ROOT_PAGES)
def test_local_links_of_a_page_lead_to_existing_files(name: str) -> None:
    """For the pages in docs/, `make docs` checks the links, including anchors."""
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", (ROOT / name).read_text())
    local = [target for target in targets if "://" not in target]
    assert local or name in ("CHANGELOG.md", "CONTRIBUTING.md")
    for target in local:
        assert (ROOT / target).exists(), f"{name} links to {target}"


def test_the_paths_that_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where to change what")[2]
    paths = re.findall(r"`((?:src|docs|tests)/[^` ]+)`", text.partition("\n## ")[0])
    assert len(paths) > 40
    missing = [path for path in paths if not any(ROOT.glob(path.replace("NAME", "*")))]
    assert not missing
