"""Models that ship with the package: weights and cards in a folder."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dent import models
from dent.errors import WeightsError
from dent.models import zoo
from dent.models.shipped_source import ShippedModels
from tests.models.conftest import lay_shipped


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shipped"
    lay_shipped(folder, "resnet-8-1-linf")
    monkeypatch.setattr(zoo, "SOURCES", (ShippedModels(folder), *zoo.SOURCES[1:]))
    return folder


def test_half_precision_weights_load_as_the_saved_model_in_float32(shipped: Path) -> None:
    saved, _ = lay_shipped(shipped, "resnet-8-1-linf")
    for value in saved.state_dict().values():  # as stored, except the normalization
        if value.is_floating_point() and value.shape != (3, 1, 1):
            value.copy_(value.half())
    loaded = models.load("resnet-8-1-linf")
    assert models.weights_digest(loaded) == models.weights_digest(saved)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    x = torch.rand(3, 3, 32, 32)
    assert torch.equal(loaded(x), saved(x))
    models.check_model(loaded, 4)


def test_info_reports_the_values_of_the_card(shipped: Path) -> None:
    assert models.names()[0] == "resnet-8-1-linf"
    known = models.info("resnet-8-1-linf")
    assert (known.dataset, known.num_classes, known.threat) == ("cifar10", 4, "linf 8/255")
    assert known.present
    assert known.size == (shipped / "resnet-8-1-linf.safetensors").stat().st_size
    natural, robust = known.accuracies
    assert (natural.value, natural.attack) == (0.73, None)
    assert (robust.value, robust.threat, robust.attack) == (0.44, "linf 8/255", "PGD-20")
    assert robust.provenance == "measured by a test"
    assert json.loads(json.dumps(dataclasses.asdict(known)))["name"] == "resnet-8-1-linf"


def test_additional_card_fields_are_accepted(shipped: Path) -> None:
    lay_shipped(shipped, "more", seed=3, versions={"torch": "2.14"})
    assert models.info("more").name == "more"


def test_a_missing_folder_gives_no_models(tmp_path: Path) -> None:
    assert ShippedModels(tmp_path / "none").entries() == ()


def test_weights_that_are_changed_or_missing_are_refused(shipped: Path) -> None:
    file = shipped / "resnet-8-1-linf.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="not the registered file: expected SHA-256"):
        models.load("resnet-8-1-linf")
    file.unlink()
    assert not models.info("resnet-8-1-linf").present
    with pytest.raises(WeightsError, match=r"resnet-8-1-linf\.safetensors.* is missing"):
        models.load("resnet-8-1-linf")


def test_normalization_that_contradicts_the_card_is_refused(shipped: Path) -> None:
    lay_shipped(shipped, "other", mean=[0.5, 0.5, 0.5])
    with pytest.raises(WeightsError, match=r"the mean \[0\.4915.*its card says \[0\.5, 0\.5"):
        models.load("other")


def test_full_precision_weights_are_loaded_bit_for_bit(shipped: Path) -> None:
    """The card rounds the mean to six digits, but the weights hold it in full precision."""
    odd = (0.49139968, 0.48215841, 0.44653091)
    model = models.resnet("resnet-8-1", num_classes=4, mean=odd).eval()
    _, card = lay_shipped(shipped, "full", mean=[round(value, 6) for value in odd])
    safetensors.torch.save_file(model.state_dict(), shipped / "full.safetensors")
    content = (shipped / "full.safetensors").read_bytes()
    card["weights"] |= {"sha256": hashlib.sha256(content).hexdigest()}
    (shipped / "full.card.json").write_text(json.dumps(card))
    assert models.weights_digest(models.load("full")) == models.weights_digest(model)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 2}, "schema"),
        ({"weights": {"file": "x", "sha256": "short", "bytes": 1, "dtype": "f"}}, "sha256"),
        ({"accuracies": None}, "accuracies"),
    ],
)
def test_error_names_an_invalid_card(shipped: Path, changes: dict[str, object], said: str) -> None:
    lay_shipped(shipped, "broken", **changes)
    with pytest.raises(WeightsError, match=rf"(?s)model card .*broken\.card\.json .*{said}"):
        models.names()


def test_a_card_whose_name_differs_from_its_file_is_refused(shipped: Path) -> None:
    lay_shipped(shipped, "renamed", name="original")
    with pytest.raises(WeightsError, match=r"call it original\.card\.json"):
        models.names()


def test_every_shipped_model_loads_and_has_accuracies() -> None:
    """This also passes if the package ships no model."""
    for entry in ShippedModels().entries():
        assert entry.present
        loaded = models.load(entry.name)
        models.check_model(loaded, entry.num_classes)
        assert entry.accuracies
