"""Test that a run can be verified in Python with the objects that its records describe."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dent import ConfigError, Dent, DentConfig, ThreatModel, data, models
from dent.attacks import make
from dent.evaluation import RecordedRun, Settings, Subject, evaluate, load_run, restore

PAGE = Path(__file__).parents[2] / "docs" / "evaluation" / "records.md"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in runs/first."""
    model = models.load("resnet-14-2-nominal")
    subject = Subject(
        model,
        data.load("cifar10-sample"),
        {"mine": Dent(model, DentConfig(steps=1, lr=0.01))},
        (make("apgd-ce", iterations=2),),
        ThreatModel("linf", "8/255"),
        model_name="resnet-14-2-nominal",
    )
    path = tmp_path_factory.mktemp("restored")
    evaluate(subject, Settings(n=4, batch_size=4), out=path / "runs" / "first")
    return path


@pytest.fixture
def recorded(here: Path) -> RecordedRun:
    return load_run(here / "runs" / "first")


def test_python_on_the_page_about_records_verifies_a_run_without_the_original_objects(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if "restore" in block)
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102
    assert names["checked"].status == "verified"
    assert f"# {names['checked'].says}\n" in block


def test_code_that_a_record_names_is_imported_only_if_allowed(
    recorded: RecordedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "restored_code.py").write_text(
        "from pathlib import Path\n"
        "Path(__file__).with_suffix('.ran').touch()\n"
        "def make(model):\n"
        "    return model\n"
    )
    spec = recorded.run.spec
    named = spec.defenses[1].model_copy(
        update={"name": "restored_code:make", "kind": "other.Defense"}
    )
    changed = spec.model_copy(update={"defenses": (spec.defenses[0], named)})
    recorded = replace(recorded, run=recorded.run.model_copy(update={"spec": changed}))
    with pytest.raises(ConfigError, match=r"restored_code:make.*allow_code=True"):
        restore(recorded)
    assert not (tmp_path / "restored_code.ran").exists()
    assert "restored_code:make" in restore(recorded, allow_code=True).defenses
    assert (tmp_path / "restored_code.ran").exists()


def test_restored_objects_are_on_the_requested_device(recorded: RecordedRun) -> None:
    assert next(restore(recorded, device="cpu").model.parameters()).device.type == "cpu"
    with pytest.raises(ConfigError, match="device 'nowhere' cannot be used here"):
        restore(recorded, device="nowhere")


@pytest.mark.parametrize("what", ["model", "dataset"])
def test_a_run_of_objects_without_names_says_how_to_verify_it(
    recorded: RecordedRun, what: str
) -> None:
    """A subject in Python names its model by its class, and `dent.evaluate` names no dataset."""
    spec = recorded.run.spec
    unnamed = getattr(spec, what).model_copy(update={"name": "ResNet"})
    changed = spec.model_copy(update={what: unnamed})
    recorded = replace(recorded, run=recorded.run.model_copy(update={"spec": changed}))
    with pytest.raises(ConfigError, match=f"no {what} 'ResNet'.*runs/first.*made in Python"):
        restore(recorded)
