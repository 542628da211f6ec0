"""torchvision classifiers, from a file in torchvision's download folder."""

import hashlib
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torchvision
from torch import nn

from dent import models
from dent.errors import UnknownNameError, WeightsError
from dent.models import torchvision_source
from tests.models.conftest import scrambled

SMALL = "squeezenet1_1"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def lay(name: str, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write weights where the download would, and patch the published digest to match."""
    file = models.info(f"torchvision/{name}").file
    assert file is not None
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(torchvision_source, "_digest", lambda _: digest)
    return path


def oracle(name: str, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Oracle: torchvision's own model with these weights, on images normalized by hand."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: dict(state))
    model = torchvision.models.get_model(name, weights=weights).eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))

    class Normalized(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = model((x - mean) / std)
            return logits

    return Normalized()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (SMALL, {}),
        ("densenet121", {}),
        ("googlenet", {"init_weights": False}),
    ],
)
def test_logits_match_torchvisions_model_on_normalized_images(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = scrambled(torchvision.models.get_model(name, **settings)).state_dict()
    if name == "densenet121":  # the published file has the key names of an older PyTorch
        state = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value
            for key, value in state.items()
            if not key.endswith("num_batches_tracked")
        }
        assert any("denselayer1.norm.1." in key for key in state)
    lay(name, state, monkeypatch)
    loaded = models.load(f"torchvision/{name}", num_classes=1000)
    x = torch.rand(1, 3, 64, 64)
    expected = oracle(name, state, monkeypatch)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), expected(x))
        assert not torch.allclose(expected(x), expected(1 - x), rtol=1e-3)
    assert not any(module.training for module in loaded.modules())


def test_a_file_that_differs_from_the_published_one_is_refused() -> None:
    """torchvision's file name contains the first digits of its SHA-256."""
    known = models.info(f"torchvision/{SMALL}")
    assert known.file is not None
    assert known.digest is not None
    assert f"-{known.digest}." in known.file
    path = Path(known.file)
    path.parent.mkdir(parents=True)
    torch.save(scrambled(torchvision.models.squeezenet1_1()).state_dict(), path)
    with pytest.raises(WeightsError, match=f"expected SHA-256 {known.digest}, got "):
        models.load(f"torchvision/{SMALL}")


def test_user_weights_may_have_a_different_number_of_classes(tmp_path: Path) -> None:
    saved = scrambled(torchvision.models.squeezenet1_1(num_classes=7))
    torch.save(saved.state_dict(), tmp_path / "tuned.pt")
    loaded = models.load(f"torchvision/{SMALL}", weights=tmp_path / "tuned.pt", num_classes=7)
    models.check_model(loaded, 7, torch.rand(2, 3, 64, 64))
    with pytest.raises(WeightsError, match=r"\(7, 512, 1, 1\) in the file"):
        models.load(f"torchvision/{SMALL}", weights=tmp_path / "tuned.pt")


def test_error_for_a_failed_download_says_which_file_to_put_where(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(WeightsError) as caught:
        models.load("torchvision/resnet50.IMAGENET1K_V1")
    said = str(caught.value)
    assert "checkpoints/resnet50-0676ba61.pth\n" in said
    assert "from:   https://download.pytorch.org/models/resnet50-0676ba61.pth\n" in said
    assert "digest: SHA-256 0676ba61..." in said


def test_a_broken_download_leaves_no_file_and_a_complete_one_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.save(scrambled(torchvision.models.squeezenet1_1()).state_dict(), tmp_path / "served.pth")
    content = (tmp_path / "served.pth").read_bytes()
    monkeypatch.setattr(
        torchvision_source, "_digest", lambda _: hashlib.sha256(content).hexdigest()[:8]
    )

    class Answer:
        headers: ClassVar[dict[str, str]] = {"Content-Length": str(len(content))}

        def __init__(self, breaks: bool) -> None:
            self.rest = [content[:1000], content[1000:], b""]
            self.breaks = breaks

        def __enter__(self) -> "Answer":
            return self

        def __exit__(self, *_: object) -> None: ...

        def read(self, _: int) -> bytes:
            if self.breaks and len(self.rest) == 2:
                raise TimeoutError("timed out")
            return self.rest.pop(0)

    answers = [Answer(breaks=True), Answer(breaks=False)]
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: answers.pop(0))
    known = models.info(f"torchvision/{SMALL}")
    folder = Path(str(known.file)).parent
    with pytest.raises(WeightsError, match="nothing arrived for 20 s"):
        models.load(f"torchvision/{SMALL}")
    assert list(folder.iterdir()) == []
    models.load(f"torchvision/{SMALL}")
    assert [path.read_bytes() for path in folder.iterdir()] == [content]


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("torchvision/resnet50.IMAGENET1K_V1", "imagenet"),
        ("torchvision/resnet50", "imagenet-r232-c224"),
        ("torchvision/swin_t", "imagenet-r232-c224-bicubic"),
    ],
)
def test_info_reports_dataset_classes_and_accuracy(name: str, dataset: str) -> None:
    known = models.info(name)
    assert (known.dataset, known.num_classes, known.threat) == (dataset, 1000, None)
    assert not known.present
    assert 0.6 < known.accuracies[0].value < 0.9


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision/resnet5", "Did you mean 'torchvision/resnet50'?"),
        ("torchvision/resnet50.IMAGENET1K_V3", "Did you mean 'IMAGENET1K_V2'?"),
        ("torchvision/fasterrcnn_resnet50_fpn", "has no classifier"),
        ("resnet50", "Did you mean 'torchvision/resnet50'"),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion_if_one_is_close(name: str, said: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        models.load(name)
    assert said in str(caught.value)


@pytest.mark.slow
def test_every_listed_model_has_info_and_can_be_built() -> None:
    """The models are built on the meta device, which allocates no memory."""
    for name in models.names("torchvision"):
        assert models.info(name).name == name
        short = name.partition("/")[2]
        published = torchvision.models.get_model_weights(short).DEFAULT
        settings = torchvision_source._settings(short, published, {})
        if short.startswith("regnet"):  # cannot be built on the meta device, and needs no settings
            assert settings == {}
            continue
        with torch.device("meta"):
            torchvision.models.get_model(short, weights=None, **settings)
