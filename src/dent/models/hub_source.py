"""Image classifiers from the Hugging Face hub: `hf/ORG/NAME`. Needs the extra `hf`.

`hf/ORG/NAME@REVISION` names a branch, tag or commit; `hf/./FOLDER` and `hf//FOLDER` name a
repository on this machine. This module looks for a repository's files in `models_root()/hf`, then
in the cache of the Hugging Face client, and downloads them to the former. It reads weights only
from a safetensors file, and never runs a repository's own code.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError

import torch
from torch import Tensor, nn

from dent.errors import ConfigError, UnsupportedModelError, WeightsError
from dent.models.fetching import Download, fetch_url, models_root
from dent.models.hub_classifier import HubClassifier, measured, preprocessing
from dent.models.info import ModelInfo
from dent.models.weights import check_finite, read_weights
from dent.names import check_hub
from dent.support.extras import check, require
from dent.support.plural import counted, listed

_PURPOSE: Final = "a model of the Hugging Face hub"
_EXTRA: Final = "hf"
_CONFIG: Final = "config.json"
_PROCESSOR: Final = "preprocessor_config.json"
_WEIGHTS: Final = "model.safetensors"
_IMAGENET: Final = 1000
_SHOWN: Final = 4


class HuggingFace:
    """The catalogue of the hub's image classifiers, each with its repository's preprocessing."""

    prefix: Final = "hf"

    def names(self) -> tuple[str, ...]:
        """Return the names on this machine, as the hub has too many; see `Catalogue.names`."""
        check("transformers", _PURPOSE, extra=_EXTRA)
        return tuple(sorted({f"{self.prefix}/{found}" for found in (*_laid(), *_cached())}))

    def candidates(self, short: str) -> tuple[str, ...]:
        """Return no names: a repository must be named in full."""
        return ()

    def info(self, name: str) -> ModelInfo:
        """Return the facts about a model, from its repository's small files; see `Catalogue.info`.

        Downloads these files if they are missing.
        """
        repository = Repository.named(name)
        config, processor = _read(repository)
        classes = _classes(config)
        written = preprocessing(measured(processor, repository.label))
        file = repository.find(_WEIGHTS)
        return ModelInfo(
            name=name,
            architecture=", ".join(config.architectures or ()) or str(config.model_type),
            dataset=_dataset(classes, written),
            num_classes=len(classes),
            threat=None,
            source=repository.label,
            digest=None,
            size=None if file is None else file.stat().st_size,
            accuracies=(),
            present=file is not None,
            file=str(file or repository.folder / _WEIGHTS),
            url=repository.url(_WEIGHTS),
            classes=classes,
        )

    def load(self, name: str, weights: Path | None, num_classes: int | None) -> nn.Module:
        """Build a model with its repository's resizing and normalization; see `Catalogue.load`."""
        repository = Repository.named(name)
        config, processor = _read(repository)
        preparation = measured(processor, repository.label)
        classes: tuple[str, ...] | None = _classes(config)
        if num_classes not in (None, config.num_labels):
            config.num_labels, classes = num_classes, None
        file = weights or repository.obtain(_WEIGHTS)
        model = _filled(config, read_weights(file), str(file))
        check_finite(model, str(file))
        return HubClassifier(model, preparation, classes).eval()


@dataclass(frozen=True)
class Repository:
    """The place of a model's files, whether or not they are there.

    Attributes:
        name: The model's full name.
        hub: `ORG/NAME`; None for a folder on this machine.
        revision: A branch, tag or commit on the hub; empty for a folder on this machine.
        folder: The folder of its files.
    """

    name: str
    hub: str | None
    revision: str
    folder: Path

    @classmethod
    def named(cls, name: str) -> Repository:
        """Return the repository with a full name.

        Raises:
            UnknownNameError: The name has another form.
            WeightsError: The name is of a folder that does not exist.
        """
        check_hub(name)
        text = name.partition("/")[2]
        if text.startswith((".", "/", "~")):
            folder = Path(text).expanduser()
            if not folder.is_dir():
                raise WeightsError(
                    f"{name!r}: there is no folder {folder} (looked from {Path.cwd()}): expected "
                    f"one with {_CONFIG}, {_PROCESSOR} and {_WEIGHTS}"
                )
            return cls(name, None, "", folder)
        hub, _, revision = text.partition("@")
        return cls(name, hub, revision or "main", models_root() / "hf" / text)

    @property
    def label(self) -> str:
        """The repository in words, for messages and records."""
        if self.hub is None:
            return f"the folder {self.folder}"
        return f"Hugging Face hub, {self.hub}" + (
            "" if self.revision == "main" else f" at {self.revision}"
        )

    def url(self, file: str) -> str | None:
        """Return the address of a file on the hub; None for a folder on this machine."""
        if self.hub is None:
            return None
        hub = require("huggingface_hub", _PURPOSE, extra=_EXTRA)
        return str(hub.hf_hub_url(self.hub, file, revision=self.revision))

    def find(self, file: str) -> Path | None:
        """Return the path of a file on this machine, or None if it is missing."""
        if (laid := self.folder / file).is_file():
            return laid
        if self.hub is None:
            return None
        hub = require("huggingface_hub", _PURPOSE, extra=_EXTRA)
        cached = hub.try_to_load_from_cache(self.hub, file, revision=self.revision)
        return Path(cached) if isinstance(cached, str) else None

    def obtain(self, file: str) -> Path:
        """Return the path of a file, after downloading it if it is missing.

        Raises:
            WeightsError: The file is missing and cannot be downloaded.
        """
        if (found := self.find(file)) is not None:
            return found
        url = self.url(file)
        if url is None:
            raise WeightsError(f"{self.name!r}: {self.folder} has no file {file}.{_safe(file)}")
        try:
            # The hub's own client would repeat a hopeless request for half a minute.
            return Download(self.name, self.folder / file, url, None, fetch_url).obtain()
        except WeightsError as error:
            raise WeightsError(self._failed(file, url, error.__cause__)) from error.__cause__

    def _failed(self, file: str, url: str, cause: object) -> str:
        status = cause.code if isinstance(cause, HTTPError) else None
        by_hand = (
            f"  hf download {self.hub} --revision {self.revision} --local-dir FOLDER\n"
            f"and name it hf/./FOLDER, or lay {_CONFIG}, {_PROCESSOR} and {_WEIGHTS} into\n"
            f"  {self.folder}"
        )
        if status == 404:
            return (
                f"{self.name!r}: the hub has no file {file} there, at revision "
                f"{self.revision!r} ({url}).{_safe(file)}"
            )
        if status in (401, 403):
            return (
                f"{self.name!r}: the hub has no public repository of that name ({url}). Check the "
                f"name. If it is private or gated, log in, fetch it yourself:\n{by_hand}"
            )
        return (
            f"{self.name!r}: {file} is not here and could not be downloaded from the Hugging Face "
            f"hub ({type(cause).__name__}: {cause}; {url}).\nWhat to do: on a machine that reaches "
            f"it:\n{by_hand}"
        )


def _read(repository: Repository) -> tuple[Any, Any]:
    """Return a repository's model configuration and image processor, without running its code."""
    transformers = require("transformers", _PURPOSE, extra=_EXTRA)
    config, processor = (repository.obtain(file) for file in (_CONFIG, _PROCESSOR))
    content = _json(config)
    if "model_type" not in content:
        timm = f": name it timm/{repository.name.rpartition('/')[2]}"
        raise UnsupportedModelError(
            f"{config}: expected the configuration of a model of transformers, with model_type; "
            f"this is another library's{timm if 'architecture' in content else ''}"
        )
    safe = {"trust_remote_code": False, "local_files_only": True}
    try:
        with _quiet():
            return (
                transformers.AutoConfig.from_pretrained(str(config.parent), **safe),
                transformers.AutoImageProcessor.from_pretrained(str(processor.parent), **safe),
            )
    except Exception as error:  # transformers may raise anything on a file of unknown origin
        raise UnsupportedModelError(
            f"{repository.label}: transformers {transformers.__version__} does not take its "
            f"{_CONFIG} or {_PROCESSOR} ({type(error).__name__}: {_first_line(error)}). A "
            "repository's own code is never run"
        ) from error


def _filled(config: Any, state: dict[str, Tensor], origin: str) -> nn.Module:
    """Build a model from a configuration, with all its weights from a file and none random."""
    transformers = require("transformers", _PURPOSE, extra=_EXTRA)
    try:
        with _quiet(), torch.device("meta"):
            kind = type(
                transformers.AutoModelForImageClassification.from_config(
                    config, trust_remote_code=False
                )
            )
    except Exception as error:
        raise UnsupportedModelError(
            f"{origin}: transformers {transformers.__version__} has no image classifier of the "
            f"type {config.model_type!r} ({type(error).__name__}: {_first_line(error)})"
        ) from error
    try:
        with _quiet():
            # Given tensors, transformers looks for no file, and renames those of old versions.
            model, told = kind.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise WeightsError(
            f"{origin} does not fit {kind.__name__}: {type(error).__name__}: {_first_line(error)}"
        ) from error
    problems = {
        "missing in the file": told["missing_keys"],
        "unknown to the model": told["unexpected_keys"],
        "of another shape": [
            each if isinstance(each, str) else each[0] for each in told["mismatched_keys"]
        ],
    }
    if any(problems.values()):
        lines = (
            f"\n  {what}: {listed(found, _SHOWN)}" for what, found in problems.items() if found
        )
        raise WeightsError(
            f"{origin} does not fit {kind.__name__} with {counted(config.num_labels, 'class')}:"
            f"{''.join(lines)}\nName the model, and the number of classes, that it was saved from"
        )
    filled: nn.Module = model
    return filled.eval()


def _classes(config: Any) -> tuple[str, ...]:
    """Return the names of the classes, in the order of the logits."""
    names = {int(index): str(label) for index, label in config.id2label.items()}
    if sorted(names) != list(range(len(names))):
        raise ConfigError(
            f"{_CONFIG}: expected id2label to name the classes from 0 on, got the numbers "
            f"{listed(sorted(names), _SHOWN)}"
        )
    return tuple(names[index] for index in range(len(names)))


def _dataset(classes: tuple[str, ...], written: str) -> str:
    if len(classes) == _IMAGENET and written:
        return {"r256-c224": "imagenet"}.get(written, f"imagenet-{written}")
    return f"{counted(len(classes), 'class')} ({listed(classes, _SHOWN)})"


def _laid() -> Iterator[str]:
    root = models_root() / "hf"
    for file in root.glob(f"*/*/{_WEIGHTS}"):
        yield file.parent.relative_to(root).as_posix()


def _cached() -> Iterator[str]:
    """Yield the names of image classifiers in the cache of the Hugging Face client."""
    # Not `huggingface_hub.constants`: version 2 does not import this submodule by itself.
    constants = require(
        "huggingface_hub.constants", _PURPOSE, extra=_EXTRA, package="huggingface_hub"
    )
    root = Path(constants.HF_HUB_CACHE).expanduser()
    for file in root.glob(f"models--*--*/snapshots/*/{_WEIGHTS}"):
        config = file.with_name(_CONFIG)
        try:
            kinds = _json(config).get("architectures") if config.is_file() else None
        except WeightsError:
            continue  # must not hide the others; loading it by name says what is wrong
        is_classifier = any("ForImageClassification" in str(kind) for kind in kinds or ())
        if is_classifier and file.with_name(_PROCESSOR).is_file():
            _, organization, model = file.parents[2].name.split("--", 2)
            yield f"{organization}/{model}"


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} is damaged or not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file}: expected a JSON object, got a {type(content).__name__}")
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress transformers' progress bars, and its messages about things that are checked here."""
    logging_of = require("transformers", _PURPOSE, extra=_EXTRA).utils.logging
    level, bars = logging_of.get_verbosity(), logging_of.is_progress_bar_enabled()
    logging_of.set_verbosity(logging.CRITICAL)
    logging_of.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # from imports of transformers
            yield
    finally:
        logging_of.set_verbosity(level)
        if bars:
            logging_of.enable_progress_bar()


def _safe(file: str) -> str:
    if file != _WEIGHTS:
        return " Expected the repository of an image classifier of transformers"
    return (
        " Weights are taken from one safetensors file alone, since other files can run code when "
        "they are read: save it with model.save_pretrained(FOLDER), and name it hf/./FOLDER"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
