"""timm's pretrained image classifiers: `timm/resnet50.a1_in1k`. Needs the extra `zoo`.

This module looks for weights in `models_root()/timm`, then in the cache of the Hugging Face client,
and downloads them to the former. It reads the tensors and passes them to timm, so that timm handles
each model's names but unpickles nothing.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from torch import nn

from dent.errors import UnknownNameError, WeightsError
from dent.models.fetching import Download, fetch_url, models_root
from dent.models.info import ModelInfo
from dent.models.normalize import Normalize
from dent.models.weights import check_finite, read_weights
from dent.names import unlisted
from dent.support.extras import require
from dent.support.plural import counted

_PURPOSE: Final = "a timm model"
_HUB: Final = "https://huggingface.co"
_FILE: Final = "model.safetensors"
_CLASSES: Final = 1000  # ImageNet's


class Timm:
    """The catalogue of timm's classifiers, each with its normalization as first layer."""

    prefix: Final = "timm"

    def names(self) -> tuple[str, ...]:
        """Return the names of all timm models with published weights; see `Catalogue.names`."""
        listed = require("timm", _PURPOSE, extra="zoo").list_models(pretrained=True)
        return tuple(f"{self.prefix}/{name}" for name in listed)

    def candidates(self, short: str) -> tuple[str, ...]:
        """Return no names: `resnet50` could also be torchvision's."""
        return ()

    def info(self, name: str) -> ModelInfo:
        """Return the facts about a model; see `Catalogue.info`.

        timm's code states neither sizes nor accuracies.
        """
        settings = self._settings(name)
        file = _present(name, settings)
        classes: int = settings.num_classes
        return ModelInfo(
            name=name,
            architecture=name.removeprefix(f"{self.prefix}/").partition(".")[0],
            dataset=_dataset(settings),
            num_classes=classes,
            threat=None,
            source=f"timm, {settings.hf_hub_id or settings.url}",
            digest=None,
            size=None if file is None else file.stat().st_size,
            accuracies=(),
            present=file is not None,
            file=str(file or _laid(name, settings)),
            url=_url(settings),
        )

    def load(self, name: str, weights: Path | None, num_classes: int | None) -> nn.Module:
        """Build a model with the normalization of its published weights; see `Catalogue.load`."""
        settings = self._settings(name)
        file = weights or _present(name, settings) or _download(name, settings).obtain()
        classes = settings.num_classes if num_classes is None else num_classes
        state = read_weights(file)
        try:
            # Pass the number of classes twice, or timm would leave the last layer random.
            model: nn.Module = require("timm", _PURPOSE, extra="zoo").create_model(
                name.removeprefix(f"{self.prefix}/"),
                pretrained=True,
                pretrained_cfg_overlay={
                    "state_dict": state,
                    "num_classes": classes,
                    "custom_load": False,
                },
                num_classes=classes,
            )
        except Exception as error:
            reason = str(error).replace("\n\t", " ")
            raise WeightsError(
                f"{file} does not contain the weights of {name!r} with "
                f"{counted(classes, 'class')}: "
                f"{type(error).__name__}: {reason}\nName the model, and the number of classes, "
                "that it was saved from"
            ) from error
        check_finite(model, str(file))
        return nn.Sequential(Normalize(settings.mean, settings.std), model)

    def _settings(self, name: str) -> Any:
        timm = require("timm", _PURPOSE, extra="zoo")
        short = name.removeprefix(f"{self.prefix}/")
        catalogued = self.names()
        if not timm.is_model(short) or ("." in short and name not in catalogued):
            raise UnknownNameError(unlisted(f"timm {timm.__version__}", name, catalogued))
        settings = timm.get_pretrained_cfg(short)
        if settings is None or not (settings.hf_hub_id or settings.url):
            tagged = [listed for listed in catalogued if listed.startswith(f"{name}.")]
            raise UnknownNameError(
                f"timm has no published weights for {name!r}. With weights there are: "
                f"{', '.join(tagged) or 'none of this architecture'}"
            )
        return settings


def _dataset(settings: Any) -> str:
    if settings.num_classes != _CLASSES:
        return f"{counted(settings.num_classes, 'class')}"
    # timm's published accuracies are at the size for tests, which may be another than in training.
    tested = None if settings.fixed_input_size else settings.test_input_size
    height, size = (tested or settings.input_size)[-2:]
    part = settings.test_crop_pct or settings.crop_pct
    mode, resize = settings.crop_mode, math.floor(size / part)  # as timm rounds
    bicubic = "-bicubic" if settings.interpolation == "bicubic" else ""
    if mode == "squash" and height == size == resize:
        return f"imagenet-s{size}{bicubic}"
    if mode != "center" or height != size:
        return f"imagenet ({mode}, resize {resize}, crop {height} x {size})"
    name = f"imagenet-r{resize}-c{size}{bicubic}"
    return "imagenet" if name == "imagenet-r256-c224" else name


def _laid(name: str, settings: Any) -> Path:
    published = (settings.hf_hub_filename or _FILE) if settings.hf_hub_id else settings.url
    return models_root() / f"{name}{Path(published).suffix}"


def _present(name: str, settings: Any) -> Path | None:
    if (laid := _laid(name, settings)).is_file():
        return laid
    if settings.hf_hub_id:
        hub = require("huggingface_hub", _PURPOSE, extra="zoo")
        cached = hub.try_to_load_from_cache(settings.hf_hub_id, settings.hf_hub_filename or _FILE)
        return Path(cached) if isinstance(cached, str) else None
    return None


def _url(settings: Any) -> str:
    if not settings.hf_hub_id:
        return str(settings.url)
    return f"{_HUB}/{settings.hf_hub_id}/resolve/main/{settings.hf_hub_filename or _FILE}"


def _download(name: str, settings: Any) -> Download:
    # The hub's own client would repeat a hopeless request for half a minute.
    return Download(name, _laid(name, settings), _url(settings), None, fetch_url)
