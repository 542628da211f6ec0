"""Models from the Hugging Face Hub, loaded from small repositories that the tests write."""

import json
import os
import shutil
import subprocess
import sys
import types
import urllib.error
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from dent import data, models
from dent.cli.output.models import entries
from dent.errors import (
    ClassNamesWarning,
    ConfigError,
    DentError,
    MissingExtraError,
    UnknownNameError,
    UnsupportedModelError,
    WeightsError,
)
from dent.models import hub_source
from dent.models.hub_classifier import HubClassifier, Preparation, measured, preprocessing
from tests.models.conftest import scrambled

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
LABELS = ("cat", "dog", "ship")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip(
        "transformers", reason="pip install torch-dent[hf] brings transformers"
    )


def tiny(transformers: Any, labels: tuple[str, ...] = LABELS) -> nn.Module:
    config = transformers.ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        id2label=dict(enumerate(labels)),
        label2id={name: index for index, name in enumerate(labels)},
    )
    return scrambled(transformers.ViTForImageClassification(config))


def lay(folder: Path, model: Any, **settings: Any) -> Path:
    """Write a repository: a saved model and the configuration of its image processor."""
    model.save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 16, "width": 16},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | settings))
    return folder


@pytest.fixture
def repository(transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return lay(tmp_path / "repository", tiny(transformers))


def test_a_local_folder_loads_as_a_model_that_takes_pixels(
    transformers: Any, repository: Path
) -> None:
    """Oracle: transformers' own model and image processor, on the same bytes."""
    loaded = models.load("hf/./repository", num_classes=3)
    own = transformers.ViTForImageClassification.from_pretrained(repository)
    processor = transformers.AutoImageProcessor.from_pretrained(repository)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        expected = own(**processor(images=list(pixels), return_tensors="pt")).logits
        torch.testing.assert_close(loaded(pixels / 255), expected, atol=1e-5, rtol=1e-4)
    normalize = next(m for m in loaded.modules() if isinstance(m, models.Normalize))
    torch.testing.assert_close(normalize.mean.flatten(), torch.tensor(MEAN), rtol=0, atol=0)
    torch.testing.assert_close(normalize.std.flatten(), torch.tensor(STD), rtol=0, atol=0)
    models.check_model(loaded, 3)
    known = models.info("hf/./repository")
    assert (known.num_classes, known.classes, known.present) == (3, LABELS, True)
    assert known.dataset == "3 classes (cat, dog, ship)"
    assert known.architecture == "ViTForImageClassification"


def test_images_of_another_size_are_resized_as_the_processor_does(
    transformers: Any, repository: Path
) -> None:
    loaded = models.load("hf/./repository")
    own = transformers.ViTForImageClassification.from_pretrained(repository)
    processor = transformers.AutoImageProcessor.from_pretrained(repository)
    pixels = torch.randint(0, 256, (2, 3, 24, 40), dtype=torch.uint8)
    images = (pixels / 255).requires_grad_()
    logits = loaded(images)
    with torch.no_grad():
        expected = own(**processor(images=list(pixels), return_tensors="pt")).logits
    # The tolerance allows for the processor's rounding to bytes.
    torch.testing.assert_close(logits, expected, atol=0.02, rtol=0.02)
    (gradient,) = torch.autograd.grad(logits.square().sum(), images)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "mean", "std", "order"),
    [
        ({"do_normalize": False}, [0.0] * 3, [1.0] * 3, (0, 1, 2)),
        ({"do_rescale": False, "do_normalize": False}, [0.0] * 3, [1 / 255] * 3, (0, 1, 2)),
        ({"do_resize": False, "image_std": [0.1, 0.2, 0.4]}, MEAN, [0.1, 0.2, 0.4], (0, 1, 2)),
        (
            {
                "image_processor_type": "MobileViTImageProcessor",
                "do_flip_channel_order": True,
                "crop_size": {"height": 16, "width": 16},
            },
            [0.0] * 3,
            [1.0] * 3,
            (2, 1, 0),
        ),
    ],
)
def test_preprocessing_is_measured_from_the_image_processor(
    transformers: Any,
    repository: Path,
    settings: dict[str, Any],
    mean: list[float],
    std: list[float],
    order: tuple[int, ...],
) -> None:
    file = repository / "preprocessor_config.json"
    content = json.loads(file.read_text()) | settings
    file.write_text(json.dumps(content))
    loaded = models.load("hf/./repository")
    found = loaded.preparation
    assert isinstance(found, Preparation)
    assert found.order == order
    assert (found.size is None) is (settings.get("do_resize") is False)
    torch.testing.assert_close(torch.tensor(found.mean), torch.tensor(mean), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(found.std), torch.tensor(std), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "settings", "written"),
    [
        ("ViT", {}, "s224"),
        ("ViT", {"resample": 1}, ""),  # Lanczos
        ("ConvNext", {}, "s384-bicubic"),
        ("ConvNext", {"size": {"shortest_edge": 224}}, "r256-c224-bicubic"),
        ("MobileNetV2", {}, "r256-c224"),
        ("PoolFormer", {}, "r248-c224-bicubic"),
        ("CLIP", {}, "r224-c224-bicubic"),
        ("DeiT", {}, ""),  # squashes to 256, then crops 224
        ("Levit", {}, ""),  # resizes to 256 for a size of 224
        ("Perceiver", {}, ""),  # crops, then squashes
    ],
)
def test_preprocessing_is_written_as_a_suffix_only_if_the_processor_does_that(
    transformers: Any, kind: str, settings: dict[str, Any], written: str
) -> None:
    processor = getattr(transformers, f"{kind}ImageProcessor")(**settings)
    assert preprocessing(measured(processor, kind)) == written


class Prepared(nn.Module):
    """A model whose logits are the images that it gets."""

    def forward(self, pixel_values: torch.Tensor) -> types.SimpleNamespace:
        return types.SimpleNamespace(logits=pixel_values)


@pytest.mark.parametrize("shape", [(32, 32), (48, 40), (300, 411)])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViT", {"size": {"height": 224, "width": 224}, "resample": 2}),
        ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}),
        ("ConvNext", {"size": {"shortest_edge": 384}, "resample": 2}),
        ("Bit", {"size": {"shortest_edge": 256}, "crop_size": 224, "resample": 3}),
        ("DeiT", {}),  # squashes to 256, then crops 224
    ],
)
def test_images_are_resized_and_cropped_as_by_the_image_processor(
    transformers: Any, kind: str, settings: dict[str, Any], shape: tuple[int, int]
) -> None:
    """Oracle: transformers' image processor, which rounds to bytes once or twice."""
    processor = getattr(transformers, f"{kind}ImageProcessor")(**settings)
    preparation = measured(processor, kind)
    x, _ = data.load("cifar10-sample").batch([0, 1])
    pixels = (nn.functional.interpolate(x, shape) * 255).round().to(torch.uint8)
    images = (pixels / 255).requires_grad_()
    found = HubClassifier(Prepared(), preparation, None)(images)
    expected = processor(images=list(pixels), return_tensors="pt").pixel_values
    std = torch.tensor(preparation.std)[:, None, None]
    difference = float(((found.detach() - expected) * std).abs().max())
    # Half a byte in each direction, of which bicubic weights enlarge the first.
    assert difference <= 1.25 / 255
    (gradient,) = torch.autograd.grad(found.sum(), images)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViT", {"resample": 1}),  # Lanczos
        ("ViT", {"resample": 0}),  # nearest
        ("Perceiver", {}),  # crops, then squashes
    ],
)
def test_images_of_another_size_are_refused_if_the_processor_resizes_in_another_way(
    transformers: Any, kind: str, settings: dict[str, Any]
) -> None:
    processor = getattr(transformers, f"{kind}ImageProcessor")(**settings)
    model = HubClassifier(Prepared(), measured(processor, kind), None)
    model(torch.rand(1, 3, 224, 224))
    with pytest.raises(UnsupportedModelError, match="images of 224 x 224 pixels, got 32 x 32"):
        model(torch.rand(1, 3, 32, 32))


def test_a_repository_with_only_pickled_weights_is_refused(
    transformers: Any, repository: Path
) -> None:
    state = safetensors.torch.load_file(repository / "model.safetensors")
    (repository / "model.safetensors").unlink()
    torch.save(state, repository / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="one safetensors file alone, since other files can run"):
        models.load("hf/./repository")


def test_code_in_a_repository_is_refused_and_not_run(transformers: Any, repository: Path) -> None:
    config = json.loads((repository / "config.json").read_text())
    config |= {
        "model_type": "their-own",
        "auto_map": {
            "AutoConfig": "code.Config",
            "AutoModelForImageClassification": "code.Model",
        },
    }
    (repository / "config.json").write_text(json.dumps(config))
    (repository / "code.py").write_text(
        "from pathlib import Path\nPath('was-run').touch()\nclass Config: pass\nclass Model: pass\n"
    )
    with pytest.raises(UnsupportedModelError, match="own code is never run"):
        models.load("hf/./repository")
    assert not Path("was-run").exists()


def test_weights_that_do_not_fit_are_refused(transformers: Any, repository: Path) -> None:
    """Plain transformers would initialize the missing weights at random and continue."""
    file = repository / "model.safetensors"
    whole = safetensors.torch.load_file(file)
    lacking = {name: value for name, value in whole.items() if name != "classifier.weight"}
    for state, said in (
        (lacking, "missing in the file: classifier.weight"),
        (whole | {"extra.weight": torch.ones(1)}, "unknown to the model: extra.weight"),
        (whole | {"classifier.bias": torch.ones(4)}, "of another shape: classifier.bias"),
        (whole | {"classifier.bias": torch.full((3,), torch.nan)}, "NaN"),
    ):
        safetensors.torch.save_file(state, file)
        with pytest.raises(WeightsError, match=said):
            models.load("hf/./repository")


def test_user_weights_may_have_a_different_number_of_classes(
    transformers: Any, repository: Path
) -> None:
    tuned = tiny(transformers, labels=CIFAR10)
    torch.save(tuned.state_dict(), "tuned.pt")
    loaded = models.load("hf/./repository", weights="tuned.pt", num_classes=10)
    models.check_model(loaded, 10)
    with pytest.raises(ConfigError, match="has 3 classes"):
        models.load("hf/./repository", num_classes=10)


def test_each_file_of_a_repository_is_downloaded_only_once(
    transformers: Any, repository: Path, models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(url: str, path: Path) -> None:
        asked.append(url)
        shutil.copyfile(repository / url.rpartition("/")[2], path)

    monkeypatch.setattr(hub_source, "fetch_url", fetch)
    assert not models.info("hf/org/name@v1.0").present
    assert [url.rpartition("/")[2] for url in asked] == ["config.json", "preprocessor_config.json"]
    loaded = models.load("hf/org/name@v1.0", num_classes=3)
    assert models.names("hf") == ("hf/org/name@v1.0",)
    assert (models_folder / "hf" / "org" / "name@v1.0" / "model.safetensors").is_file()
    assert len(asked) == 3
    assert all("/org/name/resolve/v1.0/" in url for url in asked)
    again = models.load("hf/org/name@v1.0")
    assert len(asked) == 3
    assert models.weights_digest(again) == models.weights_digest(loaded)


def test_an_unreadable_model_does_not_prevent_listing_the_others(
    transformers: Any, repository: Path, models_folder: Path
) -> None:
    for name in ("good", "broken"):
        shutil.copytree(repository, models_folder / "hf" / "org" / name)
    (models_folder / "hf" / "org" / "broken" / "preprocessor_config.json").write_text("[]")
    assert models.names("hf") == ("hf/org/broken", "hf/org/good")
    (listed,), unreadable = entries(models.names("hf"))
    assert listed.name == "hf/org/good"
    assert list(unreadable) == ["hf/org/broken"]


def test_a_damaged_file_in_the_hub_cache_does_not_hide_other_models(
    transformers: Any, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("good", "broken"):
        shutil.copytree(repository, tmp_path / "hub" / f"models--org--{name}" / "snapshots" / "1")
    damaged = tmp_path / "hub" / "models--org--broken" / "snapshots" / "1" / "config.json"
    damaged.write_text("{")
    assert models.names("hf") == ("hf/org/good",)


def test_the_hub_cache_is_listed_in_a_new_process(
    transformers: Any, repository: Path, tmp_path: Path
) -> None:
    """In this process, another test may have imported the submodules that the list needs."""
    shutil.copytree(repository, tmp_path / "hub" / "models--org--good" / "snapshots" / "1")
    listed = subprocess.run(
        [sys.executable, "-c", "from dent import models; print(models.names('hf'))"],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "DENT_MODELS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert listed.stdout == "('hf/org/good',)\n", listed.stderr


def http(code: int) -> urllib.error.HTTPError:
    return urllib.error.HTTPError("https://hub", code, "said", Message(), None)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError("no network"),
            r"could not be downloaded .* \(OSError: no network.*\n.*\n  hf download",
        ),
        (http(401), "no public repository of that name"),
        (http(404), "the hub has no file config.json there, at revision 'main'"),
    ],
)
def test_error_for_a_failed_download_explains_the_cause(
    transformers: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(hub_source, "fetch_url", fail)
    for act in (models.load, models.info):
        with pytest.raises(WeightsError, match=said):
            act("hf/org/name")


def test_error_without_transformers_names_the_extra_to_install(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for act in (models.load, models.info):
        with pytest.raises(MissingExtraError, match=r'pip install "torch-dent\[hf\]"'):
            act("hf/./repository")


@pytest.mark.parametrize("name", ["hf/", "hf/name", "hf/a/b/c", "hf/org/na me", "hf/org/n@../../x"])
def test_malformed_names_are_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="expected hf/ORG/NAME"):
        models.load(name)


def test_a_missing_folder_is_refused(transformers: Any) -> None:
    with pytest.raises(WeightsError, match="there is no folder nowhere"):
        models.load("hf/./nowhere")


def test_error_for_a_timm_repository_suggests_the_timm_name(
    transformers: Any, repository: Path
) -> None:
    (repository / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
    with pytest.raises(UnsupportedModelError, match="name it timm/"):
        models.load("hf/./repository")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(("config.json", text) for text in ("{", "[]", "{}", '{"model_type": "bert"}')),
        *(("preprocessor_config.json", text) for text in ("{", "[]")),
        ("preprocessor_config.json", '{"image_processor_type": "NoneOfTheirs"}'),
    ],
)
def test_invalid_config_files_are_refused(
    transformers: Any, repository: Path, file: str, content: str
) -> None:
    (repository / file).write_text(content)
    with pytest.raises(DentError):
        models.load("hf/./repository")


class Named(nn.Module):
    def __init__(self, *classes: str) -> None:
        super().__init__()
        self.classes = classes


@pytest.mark.filterwarnings("error")
def test_class_names_are_compared_if_model_and_dataset_both_have_them() -> None:
    check = models.check_class_names
    check(Named(*CIFAR10), CIFAR10)
    check(Named("Tench, Tinca tinca", "great_white shark"), ("tench", "great white shark"))
    check(Named("LABEL_0", "LABEL_1"), ("cat", "dog"))
    check(Named("plane", "car", *CIFAR10[2:]), CIFAR10)
    check(nn.Identity(), CIFAR10)
    swapped = (*CIFAR10[:3], "dog", "deer", "cat", *CIFAR10[6:])
    with pytest.raises(UnsupportedModelError, match="'dog' is label 3 of the model and 5 of the"):
        check(Named(*swapped), CIFAR10)
    with pytest.warns(ClassNamesWarning, match="have other names"):
        check(Named("Katze", "Hund"), ("cat", "dog"))
