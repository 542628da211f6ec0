"""timm classifiers, from files placed by hand or by the Hugging Face client."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from dent import models
from dent.data.preprocessing import Preprocessing
from dent.errors import MissingExtraError, UnknownNameError, WeightsError
from dent.models import timm_source
from tests.models.conftest import scrambled

NAME = "timm/mobilenetv3_small_050.lamb_in1k"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def timm() -> Any:
    return pytest.importorskip("timm", reason="pip install torch-dent[zoo] brings timm")


def build(timm: Any, **settings: Any) -> nn.Module:
    return scrambled(timm.create_model("mobilenetv3_small_050", **settings))


def check(loaded: nn.Module, saved: nn.Module) -> None:
    x = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), saved((x - mean) / std))
    assert not any(module.training for module in loaded.modules())


def test_a_manually_placed_file_is_loaded(timm: Any, models_folder: Path) -> None:
    saved = build(timm)
    known = models.info(NAME)
    assert known.file == f"{models_folder}/{NAME}.safetensors"
    assert (known.present, known.dataset) == (False, "imagenet-r256-c224-bicubic")
    Path(known.file).parent.mkdir(parents=True)
    safetensors.torch.save_file(saved.state_dict(), known.file)
    assert models.info(NAME).present
    check(models.load(NAME, num_classes=1000), saved)


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("deit_base_patch16_224.fb_in1k", "imagenet-r248-c224-bicubic"),
        ("convnext_base.fb_in22k_ft_in1k_384", "imagenet-s384-bicubic"),
        ("dm_nfnet_f0.dm_in1k", "imagenet (squash, resize 284, crop 256 x 256)"),
        ("resnet18.tv_in1k", "imagenet"),
        ("resnet50.a1_in1k", "imagenet-r288-c288-bicubic"),  # for tests; 224 in training
    ],
)
def test_the_dataset_says_how_timm_resizes_and_crops(timm: Any, name: str, dataset: str) -> None:
    assert models.info(f"timm/{name}").dataset == dataset


@pytest.mark.parametrize(
    "name",
    [
        "deit_base_patch16_224.fb_in1k",
        "convnext_base.fb_in22k_ft_in1k_384",
        "resnet50.a1_in1k",
        "resnet50.bt_in1k",
    ],
)
def test_the_named_preprocessing_is_that_of_timm(timm: Any, name: str) -> None:
    settings = timm.data.resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg(name).to_dict(), use_test_size=True
    )
    chosen = {
        key: settings[key] for key in ("input_size", "interpolation", "crop_pct", "crop_mode")
    }
    own = timm.data.create_transform(**chosen, normalize=False)
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (300, 421, 3), dtype=np.uint8)
    )
    written = models.info(f"timm/{name}").dataset.removeprefix("imagenet-")
    ours = torch.from_numpy(Preprocessing.parse(written)(picture).copy())
    assert torch.equal(ours.permute(2, 0, 1), own(picture))


def test_a_file_in_the_hugging_face_cache_is_found(
    timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    saved = build(timm)
    repo = tmp_path / "hub" / "models--timm--mobilenetv3_small_050.lamb_in1k"
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    safetensors.torch.save_file(
        saved.state_dict(), repo / "snapshots" / "abc" / "model.safetensors"
    )
    assert models.info(NAME).present
    check(models.load(NAME), saved)


def test_user_weights_may_have_a_different_number_of_classes(timm: Any, tmp_path: Path) -> None:
    """Plain timm would silently keep a random last layer."""
    saved = build(timm, num_classes=7)
    torch.save({"state_dict": saved.state_dict()}, tmp_path / "tuned.pt")
    check(models.load(NAME, weights=tmp_path / "tuned.pt", num_classes=7), saved)
    with pytest.raises(WeightsError, match=r"does not contain the weights of .* with 1000 classes"):
        models.load(NAME, weights=tmp_path / "tuned.pt")


def test_error_for_a_failed_download_says_which_file_to_put_where(
    timm: Any, models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm_source, "fetch_url", offline)
    with pytest.raises(WeightsError) as caught:
        models.load(NAME)
    assert f"file:   {models_folder}/{NAME}.safetensors\n" in str(caught.value)
    assert f"{NAME}/resolve/main/model.safetensors\n" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm/mobilenetv3_small_050.lamb_in1", "Did you mean 'timm/mobilenetv3_small_050.lamb_in"),
        ("timm/nothing", "has no model 'timm/nothing'"),
        ("mobilenetv3_small_050", "Did you mean 'timm/mobilenetv3_small_050.lamb_in1k'?"),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion_if_one_is_close(
    timm: Any, name: str, said: str
) -> None:
    with pytest.raises(UnknownNameError) as caught:
        models.load(name)
    assert said in str(caught.value)


def test_error_without_timm_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for act in (models.load, models.info):
        with pytest.raises(MissingExtraError, match=r'pip install "torch-dent\[zoo\]"'):
            act(NAME)
    with pytest.raises(UnknownNameError, match="there is no model 'resnet5'"):
        models.load("resnet5")  # the other sources still work
