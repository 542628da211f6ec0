"""Test that invalid commands fail before anything is loaded, and that errors name their origin."""

import importlib.util
import os
import pkgutil
import re
import socket
import sys
from pathlib import Path

import pytest

import dent
from dent import data
from dent.cli.app import main
from dent.support import blame
from dent.support.reaching import unreachable

MINE = """\
import torch
from torch import nn


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return {}["no backward"]


class Net(nn.Module):
    def __init__(self, fails):
        super().__init__()
        self.fails = fails
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, 10),
        )

    def forward(self, x):
        if self.fails == "forward" and len(x) > 2:
            return self.model(x) / {}["no forward"]
        return self.model(Wrong.apply(x) if self.fails == "backward" else x)


def good():
    return Net("")


def forward():
    return Net("forward")


def backward():
    return Net("backward")


class Adapting:
    batch_dependent = False

    def __init__(self, model):
        self.model = model

    def adapt(self, x):
        raise OSError("no adapt")

    def predict(self, x, adaptation):
        return self.model(x)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine_for_blame.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine_for_blame", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def status(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["dent", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def line(text: str) -> int:
    return next(at for at, each in enumerate(MINE.splitlines(), 1) if text in each)


@pytest.mark.parametrize(
    ("options", "error", "text", "function"),
    [
        (["--model", "mine_for_blame:forward"], "KeyError", '["no forward"]', "forward"),
        (["--model", "mine_for_blame:backward"], "KeyError", '["no backward"]', "backward"),
        (["--defense", "mine_for_blame:Adapting"], "OSError", "no adapt", "adapt"),
    ],
)
def test_errors_in_user_code_are_reported_with_file_line_and_function(
    options: list[str],
    error: str,
    text: str,
    function: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--n", "4", "--iterations", "1", "--device", "cpu", "--out", "run"]
    options = options if "--model" in options else ["--model", "mine_for_blame:good", *options]
    assert status(monkeypatch, "evaluate", *options, *arguments) == 2
    said = capsys.readouterr().err
    assert error in said
    assert f"raised at mine_for_blame.py, line {line(text)}, in {function}" in said
    assert "Traceback" not in said


EXITS = """
import sys
from torch import nn

if EXITS_AT_IMPORT:
    sys.exit(0)


def at_import():
    return nn.Flatten()


def at_call():
    sys.exit(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))

    def forward(self, x):
        if len(x) > 2:
            sys.exit(0)
        return self.model(x)


def in_predict():
    return Net()
"""


@pytest.mark.parametrize(
    ("factory", "said", "function"),
    [
        ("at_import", "called sys.exit() while it was imported", "<module>"),
        ("at_call", "called sys.exit() while it was called", "at_call"),
        ("in_predict", "called sys.exit()", "forward"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "serve"])
def test_sys_exit_in_user_code_is_not_the_status_of_the_command(
    command: str,
    factory: str,
    said: str,
    function: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = EXITS.replace("EXITS_AT_IMPORT", str(factory == "at_import"))
    name = f"exits_{command}_{factory}"
    (folder / f"{name}.py").write_text(text)
    monkeypatch.delitem(sys.modules, name, raising=False)
    options = ["--out", "run", "--n", "4"] if command == "evaluate" else ["--port", "0"]
    chosen = ["--model", f"{name}:{factory}", "--defense", "static", "--device", "cpu"]
    assert status(monkeypatch, command, *chosen, *options) == 2
    out = capsys.readouterr().err
    assert said in out
    assert re.search(rf"raised at {name}\.py, line \d+, in {function}\n", out)


def test_verify_fails_if_the_recorded_model_calls_sys_exit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = folder / "mine_for_blame.py"
    evaluate = ["--model", "mine_for_blame:good", "--defense", "static", "--n", "4"]
    evaluate += ["--iterations", "1", "--device", "cpu", "--out", "run"]
    assert status(monkeypatch, "evaluate", *evaluate) == 0
    module.write_text(MINE.replace('return Net("")', "raise SystemExit(0)"))
    os.utime(module, (0, 0))  # else Python would use the compiled file
    monkeypatch.delitem(sys.modules, "mine_for_blame")
    assert status(monkeypatch, "verify", "run", "--allow-code", "--device", "cpu") == 2
    assert "called sys.exit() while it was called" in capsys.readouterr().err


def test_modules_of_the_package_are_not_classified_as_user_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = pkgutil.walk_packages(dent.__path__, "dent.")
    specs = [importlib.util.find_spec(module.name) for module in modules]
    files = [spec.origin for spec in specs if spec is not None and spec.origin]
    assert len(files) > 300
    assert not [file for file in files if blame._is_others(file, installed=True)]
    assert status(monkeypatch, "show", "nowhere") == 2
    assert "raised at" not in capsys.readouterr().err


def test_errors_in_the_package_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dent.cli.resolve.swept", lambda *_: [].pop())
    monkeypatch.setattr("sys.argv", ["dent", "evaluate"])
    monkeypatch.setattr(blame, "_OWN", Path(__file__).parents[2])
    with pytest.raises(IndexError):
        main()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "--out", "taken"], "taken is a file"),
        (["evaluate", "--out", "taken/run"], "taken is a file, not a folder"),
        (["demo", "--out", "taken"], "taken is a file"),
        (["train", "--recipe", "fast", "--out", "taken"], "taken is a file"),
        (
            ["train", "--recipe", "fast", "--dataset", "my:data", "--data", "x"],
            "my:data is a factory: leave out",
        ),
        (["serve", "--dataset", "my:data", "--data", "x"], "my:data is a factory: leave out"),
        (["report", "run", "-o", "taken/report.html"], "taken is a file, not a folder"),
        (["report", "run", "-o", "sub"], "sub is a folder"),
        (["merge", "run", "--out", "taken"], "taken is a file"),
        (["board", "export", "rows", "--to", "huggingface", "-o", "taken"], "taken is a file"),
        (["board", "submit", "row", "-o", "taken/row.tar.gz"], "taken is a file, not a folder"),
        (["paper", "table4", "--publish", "taken"], "taken is a file"),
        (["evaluate", "--weights", "no.pt"], "no weights file at no.pt"),
        (["evaluate", "--defense", "no.json"], "--defense no.json: no such file"),
        (["serve", "--weights", "no.pt"], "no weights file at no.pt"),
        (["evaluate", "--device", "meta"], "device 'meta' computes no values"),
        (["paper", "--estimate"], "--estimate needs tables: name some, or add --all"),
        (
            ["paper", "table4", "--no-suite", "--publish", "new"],
            "--publish needs the results of the dynamic suite: leave out --no-suite",
        ),
    ],
)
def test_invalid_paths_are_refused_before_a_dataset_is_loaded(
    arguments: list[str],
    said: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "taken").write_text("")
    (folder / "sub").mkdir()
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("a dataset was loaded"))
    assert status(monkeypatch, *arguments) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in folder.iterdir()) == ["mine_for_blame.py", "sub", "taken"]


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (["evaluate", "--ray"], "ray", "ray"),
        (["serve"], "ray", "ray"),
        (["evaluate", "--model", "timm/resnet50"], "timm", "zoo"),
        (["evaluate", "--model", "Carmon2019Unlabeled"], "robustbench", "zoo"),
        (["train", "--recipe", "fast"], "accelerate", "train"),
        (["playground"], "gradio", "playground"),
    ],
)
def test_missing_extras_are_refused_before_a_dataset_is_loaded(
    arguments: list[str],
    package: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("a dataset was loaded"))
    assert status(monkeypatch, *arguments) == 2
    assert f'pip install "torch-dent[{extra}]"' in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["evaluate", "--ray"], ["serve"]])
def test_unreachable_ray_cluster_is_refused_by_its_address(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
        assert unreachable(address) is None
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert status(monkeypatch, *arguments) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"the Ray cluster {address}, which RAY_ADDRESS names, cannot be reached" in said
    assert "unset RAY_ADDRESS" in said
    assert unreachable("auto") is None
    assert unreachable(f"ray://{address}") is not None


def test_empty_results_and_missing_folders_are_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "EMPTY").mkdir()
    for arguments, said in (
        (["list", "EMPTY"], "No runs in EMPTY or below."),
        (["models", "zzzz"], "No model has 'zzzz' in its name."),
        (["models", "resnte18", "--source", "torchvision"], "Did you mean 'resnet18'?"),
    ):
        assert status(monkeypatch, *arguments) == 0
        assert said in capsys.readouterr().err
    for command in ("list", "show", "report", "verify", "merge"):
        more = ["--out", "out"] if command == "merge" else []
        assert status(monkeypatch, command, "nofolder", *more) == 2
        assert "nofolder does not exist" in capsys.readouterr().err
    assert not os.path.exists("out")


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_catalogues_that_are_not_searched_are_named_on_standard_error(
    more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert status(monkeypatch, "models", "resnet-14-2", *more) == 0
    captured = capsys.readouterr()
    assert "Not searched: " in captured.err
    assert "timm" in captured.err
    assert "Not searched" not in captured.out
    assert "resnet-14-2" in captured.out


def test_n_above_the_dataset_size_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dent.cli.runner.announce", end)
    monkeypatch.setattr("dent.cli.runner.announce_sweep", end)
    arguments = ("--model", "mine_for_blame:good", "--device", "cpu")
    for asked, said in (
        (("--n", "100000"), "--n 100000 is"),
        (("--n", "1024", "--suite", "dynamic"), "--n 1024 is"),
        (("--sweep", "n=2,300"), "--sweep n=300 is"),
    ):
        assert status(monkeypatch, "evaluate", *arguments, *asked) == 130
        note = f"{said} larger than cifar10-sample: using all 256 images."
        assert note in capsys.readouterr().err
    for asked in (("--suite", "dynamic"), ("--n", "256")):
        assert status(monkeypatch, "evaluate", *arguments, *asked) == 130
        assert "is larger than" not in capsys.readouterr().err
