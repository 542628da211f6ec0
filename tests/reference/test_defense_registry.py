"""Tests of defenses by name, from a file, and from the user's code, and of the errors."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dent import (
    DENT_PLUS,
    ConfigError,
    Dent,
    DentConfig,
    SmoothingConfig,
    UnknownNameError,
    UnsupportedModelError,
    ViewsConfig,
)
from dent.defenses import AntiAdversary, describe, load_config, make, names

OWN = """
from torch import nn
import torch

class Whole:
    batch_dependent = True
    stateful = True
    def __init__(self, model): self.model = model
    def adapt(self, x): return None
    def predict(self, x, adaptation): return self.model(x)
    def __call__(self, x): return self.predict(x, self.adapt(x))

class Described(Whole):
    def describe(self): return {"name": "mine", "settings": {"k": 1}}

class Undescribable(Whole):
    def describe(self): return {"settings": {"model": self.model}}

class Half(nn.Module):
    def __init__(self, model): super().__init__()
    def adapt(self, x): return None

class Silent:
    batch_dependent = False
    def __init__(self, model): self.model = model
    def adapt(self, x): return None
    def predict(self, x, adaptation): return self.model(x)

def plain(model): return nn.Sequential(model, nn.Softmax(1)).train()
def nothing(model): return None
def raising(model): raise RuntimeError("out of luck")
def misconfigured(model):
    from dent.defenses import AntiAdversary
    return AntiAdversary(model, steps=-1)
def without_model(): return None
instance = nn.Linear(1, 1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_defenses.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("import torch\n1 / 0\n")
    (tmp_path / "own_lacking.py").write_text("import no_such_package_at_all\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names_and_flags_of_defenses_match_the_documentation(small: nn.Sequential) -> None:
    page = (Path(__file__).parents[2] / "docs" / "defenses.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    documented = {
        row[1].strip(" `"): [cell.strip(" *") == "yes" for cell in row[3:6]] for row in rows
    }
    assert set(documented) == set(names())
    for name, flags in documented.items():
        described = describe(make(name, small))
        assert flags == [described[key] for key in ("batch_dependent", "stateful", "randomized")]


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        ("dnet", "dent"),
        ("Dent+", "dent+"),
        ("anti_adversary", "anti-adversary"),
        ("tent", "tent-online"),
    ],
)
def test_error_for_an_unknown_name_suggests_a_similar_name(
    spec: str, meant: str, small: nn.Sequential
) -> None:
    with pytest.raises(UnknownNameError, match=f"{spec!r}".replace("+", r"\+")) as caught:
        make(spec, small)
    assert f"Did you mean {meant!r}?" in str(caught.value)
    assert "hedge" in str(caught.value)


def test_error_for_a_name_like_no_other_lists_all_names(small: nn.Sequential) -> None:
    with pytest.raises(UnknownNameError) as caught:
        make("qqqq", small)
    assert "Did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in names())


def test_defense_is_made_from_a_configuration_file(
    folder: Path, small: nn.Sequential, batch: Tensor
) -> None:
    (folder / "plus.json").write_text(DENT_PLUS.to_json())
    assert load_config("plus.json") == DENT_PLUS
    (folder / "plus.json").write_text(DENT_PLUS.to_json(), encoding="utf-8-sig")
    assert load_config("plus.json") == DENT_PLUS
    defense = make(str(folder / "plus.json"), small)
    assert describe(defense)["name"] == "dent+"
    assert torch.equal(defense(batch), Dent(small, DENT_PLUS)(batch))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no configuration file"),
        (b"steps: 3", "not"),
        (b"[1, 2]", "mapping"),
        (b'{"stepz": 3}', "no field 'stepz'. Did you mean 'steps'"),
        (b'{"steps": -3}', "at least 0, got -3"),
        (b'{"smoothing": {"sigmma": 1}}', "Did you mean 'sigma'"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_invalid_configuration_file_is_refused(
    content: bytes | None, message: str, folder: Path, small: nn.Sequential
) -> None:
    if content is not None:
        (folder / "settings.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"settings\.json") as caught:
        make("settings.json", small)
    assert message in str(caught.value)


def test_folder_in_place_of_a_configuration_file_is_refused(
    folder: Path, small: nn.Sequential
) -> None:
    (folder / "settings.json").mkdir()
    with pytest.raises(ConfigError, match=r"settings\.json cannot be read"):
        make("settings.json", small)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (DentConfig(steps=3), "dent-custom"),
        (DentConfig(steps=0, lr=1.0), "static"),
        (DentConfig(steps=0, statistics="test", lr=1.0), "statistics-only"),
        (DentConfig(steps=0, smoothing=SmoothingConfig(sigma=2.0)), "smoothing"),
        (
            DentConfig(steps=0, statistics="test", smoothing=SmoothingConfig(sigma=2.0)),
            "dent-custom",
        ),
        (DentConfig(steps=0, views=ViewsConfig(count=13), lr=1.0), "tte"),
        (DentConfig(steps=0, views=ViewsConfig(predict="probabilities")), "tte"),
        (DentConfig(steps=0, views=ViewsConfig(predict="image")), "static"),
        (DentConfig(steps=0, views=ViewsConfig(), statistics="test"), "dent-custom"),
        (DentConfig(steps=1, views=ViewsConfig()), "dent-custom"),
    ],
)
def test_description_of_dent_names_its_configuration(
    config: DentConfig, name: str, small: nn.Sequential
) -> None:
    described = describe(Dent(small, config))
    assert described["name"] == name
    assert DentConfig.from_dict(described["settings"]) == config


def test_own_defense_is_made_by_its_path_and_described(
    folder: Path, small: nn.Sequential, batch: Tensor
) -> None:
    defense = make("own_defenses:Whole", small)
    assert torch.equal(defense(batch), small(batch))
    assert describe(defense) == {
        "name": "own_defenses:Whole",
        "settings": {},
        "batch_dependent": True,
        "stateful": True,
        "randomized": False,
    }
    described = describe(make("own_defenses:Described", small))
    assert (described["name"], described["settings"]) == ("mine", {"k": 1})
    assert described["batch_dependent"]


def test_own_defense_does_not_have_to_be_callable(
    folder: Path, small: nn.Sequential, batch: Tensor
) -> None:
    defense = make("own_defenses:Silent", small)
    assert torch.equal(defense.predict(batch, defense.adapt(batch)), small(batch))


def test_own_plain_module_is_a_static_defense_in_eval_mode(
    folder: Path, small: nn.Sequential, batch: Tensor
) -> None:
    defense = make("own_defenses:plain", small)
    assert not defense.batch_dependent
    torch.testing.assert_close(defense(batch), small.eval()(batch).softmax(1))


def test_defense_class_of_this_package_can_be_given_by_its_path(small: nn.Sequential) -> None:
    assert isinstance(make("dent.defenses:AntiAdversary", small), AntiAdversary)
    assert describe(make("dent.defenses:StatisticsPrior", small))["settings"] == {"strength": 16.0}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_defenses:Hole", "has no 'Hole'"),
        ("own_defenses:Whol", "Did you mean 'Whole'"),
        ("own_nowhere:make", "no module named 'own_nowhere'"),
        ("dent.nowhere:make", "no module named 'dent.nowhere'"),
        ("own_defenses.py:Whole:", "package.module:factory"),
        ("own/defenses:Whole", "package.module:factory"),
    ],
)
def test_unknown_factory_is_refused(
    spec: str, message: str, folder: Path, small: nn.Sequential
) -> None:
    with pytest.raises(UnknownNameError) as caught:
        make(spec, small)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_defenses:Half", "Half without predict, batch_dependent"),
        ("own_defenses:nothing", "NoneType without adapt"),
        ("own_defenses:raising", "RuntimeError: out of luck"),
        ("own_defenses:without_model", "called with the model"),
        ("own_defenses:instance", "takes the model, got torch.nn.modules.linear.Linear"),
        ("own_broken:make", "importing own_broken raised ZeroDivisionError"),
        ("own_lacking:make", "no_such_package_at_all"),
    ],
)
def test_factory_that_fails_is_refused_with_the_cause(
    spec: str, message: str, folder: Path, small: nn.Sequential
) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        make(spec, small)
    assert message in str(caught.value)


def test_config_error_of_a_factory_is_passed_on(folder: Path, small: nn.Sequential) -> None:
    with pytest.raises(ConfigError, match="at least 1, got -1"):
        make("own_defenses:misconfigured", small)


def test_description_that_is_not_json_is_refused(folder: Path, small: nn.Sequential) -> None:
    with pytest.raises(ConfigError, match="plain JSON"):
        describe(make("own_defenses:Undescribable", small))


def test_description_of_a_plain_module_has_the_path_of_its_class(small: nn.Sequential) -> None:
    described = describe(small)
    assert described["name"] == "torch.nn.modules.container:Sequential"
    assert json.dumps(described)
    assert not described["batch_dependent"]


def test_model_without_normalization_is_refused_for_dent() -> None:
    with pytest.raises(UnsupportedModelError, match="normalization"):
        make("dent", nn.Linear(2, 2))
