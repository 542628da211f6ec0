"""torchvision's ImageNet classifiers: `torchvision/resnet50`, `torchvision/resnet50.IMAGENET1K_V1`.

Without a name after the dot, the weights are torchvision's DEFAULT. They are read from, and
downloaded to, torchvision's own folder (`torch.hub.get_dir()`), and are checked against the digits
of their SHA-256 that torchvision writes into the file's name.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch.hub
from torch import Tensor, nn

from dent.errors import UnknownNameError
from dent.models.fetching import Download, fetch_url
from dent.models.info import Accuracy, ModelInfo
from dent.models.normalize import Normalize
from dent.models.weights import fit_weights, read_weights
from dent.names import unlisted
from dent.support.suggest import did_you_mean

_CLASSES: Final = 1000
_IMAGES: Final = 50_000
_AUXILIARY: Final = ("googlenet", "inception_v3")
_DIGEST: Final = re.compile(r"-([0-9a-f]{8,})\.")
_OLD_DENSENET: Final = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


class Torchvision:
    """The catalogue of torchvision's classifiers, each with its normalization as first layer."""

    prefix: Final = "torchvision"

    def names(self) -> tuple[str, ...]:
        """Return the names of all models, each with its default weights; see `Catalogue.names`."""
        models = _models()
        return tuple(f"{self.prefix}/{name}" for name in models.list_models(module=models))

    def candidates(self, short: str) -> tuple[str, ...]:
        """Return no names: `resnet50` could also be timm's."""
        return ()

    def info(self, name: str) -> ModelInfo:
        """Return the facts about a model; see `Catalogue.info`."""
        architecture, weights = self._find(name)
        file = _download(name, weights).file
        meta = weights.meta
        accuracy = meta["_metrics"]["ImageNet-1K"]["acc@1"]
        present = file.is_file()
        about = round(meta["_file_size"] * 2**20)
        return ModelInfo(
            name=name,
            architecture=architecture,
            dataset=_dataset(weights.transforms()),
            num_classes=_CLASSES,
            threat=None,
            source=f"torchvision, {weights.name}",
            digest=_digest(weights),
            size=file.stat().st_size if present else about,
            accuracies=(
                Accuracy(
                    round(accuracy * _IMAGES / 100), _IMAGES, "torchvision, as stated in its code"
                ),
            ),
            present=present,
            file=str(file),
            url=weights.url,
        )

    def load(self, name: str, weights: Path | None, num_classes: int | None) -> nn.Module:
        """Build a model with the normalization of its published weights; see `Catalogue.load`."""
        architecture, published = self._find(name)
        if weights is None:
            digest = _digest(published)
            weights = _download(name, published).obtain()
        else:
            digest = None
        state = read_weights(weights, digest)
        if architecture.startswith("densenet"):
            state = {_OLD_DENSENET.sub(r"\1\2.", key): value for key, value in state.items()}
        classes = _CLASSES if num_classes is None else num_classes
        model = _models().get_model(
            architecture,
            weights=None,
            num_classes=classes,
            **_settings(architecture, published, state),
        )
        fit_weights(model, state, origin=str(weights))
        transforms = published.transforms()
        return nn.Sequential(Normalize(transforms.mean, transforms.std), model)

    def _find(self, name: str) -> tuple[str, Any]:
        models = _models()
        architecture, _, which = name.removeprefix(f"{self.prefix}/").partition(".")
        listed = models.list_models(module=models)
        if architecture not in listed:
            full_names = [f"{self.prefix}/{entry}" for entry in listed]
            release = version("torchvision").partition("+")[0]
            raise UnknownNameError(unlisted(f"torchvision {release}", name, full_names))
        published = models.get_model_weights(architecture)
        if which and which not in published.__members__:
            words = ", ".join(published.__members__)
            raise UnknownNameError(
                f"{self.prefix}/{architecture} has no weights {which!r}, only {words}."
                f"{did_you_mean(which, published.__members__)}"
            )
        return architecture, published[which] if which else published.DEFAULT


def _models() -> Any:
    # This import takes two seconds, and other models do not need it.
    from torchvision import models  # noqa: PLC0415

    return models


def _settings(architecture: str, published: Any, state: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments that torchvision's own functions set when they are given weights."""
    if architecture in _AUXILIARY:
        auxiliary = any(key.startswith(("aux", "Aux")) for key in state)
        return {"aux_logits": auxiliary, "transform_input": True, "init_weights": False}
    if architecture.startswith("vit_"):
        return {"image_size": published.meta["min_size"][0]}
    return {}


def _dataset(transforms: Any) -> str:
    (resize,), (crop,) = transforms.resize_size, transforms.crop_size
    if transforms.interpolation.value == "bicubic":
        return f"imagenet-r{resize}-c{crop}-bicubic"
    return "imagenet" if (resize, crop) == (256, 224) else f"imagenet-r{resize}-c{crop}"


def _digest(weights: Any) -> str | None:
    match = _DIGEST.search(weights.url.rpartition("/")[2])
    return match[1] if match else None


def _download(name: str, weights: Any) -> Download:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / weights.url.rpartition("/")[2]
    return Download(name, file, weights.url, _digest(weights), fetch_url)
