"""RobustBench's models (Croce et al., 2021) under its own names: `robustbench/DATASET/NORM/NAME`.

Listing them needs no other package, because `tools/tabulate_robustbench.py` wrote a table of them.
Loading one needs the extra `zoo`. The weights are stored below `models_root()`, in RobustBench's
own layout. This package reads them without running code (`weights_only`), and writes them to a new
file for RobustBench's own loader. That loader handles each model's names, and unpickles only the
content that this package wrote.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from dent.errors import ConfigError, DentError, UnknownNameError, WeightsError
from dent.models.fetching import Download, fetch_url, models_root, run_with_limit
from dent.models.info import Accuracy, ModelInfo
from dent.models.robustbench_package import PURPOSE, TABLE, import_robustbench
from dent.models.weights import fit_weights, read_checkpoint, read_weights
from dent.names import unlisted
from dent.support.extras import require
from dent.support.plural import counted

_CLASSES: Final = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_EPS: Final = {
    ("cifar10", "Linf"): "linf 8/255",
    ("cifar10", "L2"): "l2 0.5",
    ("cifar100", "Linf"): "linf 8/255",
    ("imagenet", "Linf"): "linf 4/255",
}
_IMAGES: Final = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
_DATASETS: Final = {  # by RobustBench's name of the preprocessing
    "Res256Crop224": "imagenet",
    "BicubicRes256Crop224": "imagenet-r256-c224-bicubic",
    "Crop288": "imagenet-288",
    "Res224": "imagenet-s224",
    None: "imagenet-r224-c224-bicubic",  # timm's default, for the three XCiTs without a name
}
_DRIVE_SECONDS: Final = 60.0
"""How long Google Drive may send nothing. It answers up to three requests before the first byte."""
#: The models in the paper's Table 1 and its authors' instructions, and Wong et al.'s for ImageNet.
PAPER: Final = (
    "robustbench/cifar10/Linf/Carmon2019Unlabeled",
    "robustbench/cifar10/Linf/Wong2020Fast",
    "robustbench/cifar10/Linf/Ding2020MMA",
    "robustbench/cifar10/L2/Rice2020Overfitting",
    "robustbench/cifar10/L2/Rony2019Decoupling",
    "robustbench/cifar10/L2/Ding2020MMA",
    "robustbench/cifar10/Linf/Wu2020Adversarial_extra",
    "robustbench/cifar10/Linf/Sehwag2020Hydra",
    "robustbench/cifar10/Linf/Wang2020Improving",
    "robustbench/cifar10/Linf/Hendrycks2019Using",
    "robustbench/imagenet/Linf/Wong2020Fast",
)


class RobustBench:
    """The catalogue of RobustBench's l-infinity and l2 models."""

    prefix: Final = "robustbench"

    def names(self) -> tuple[str, ...]:
        """Return the names of all models, without RobustBench itself; see `Catalogue.names`."""
        return tuple(_table()["models"])

    def candidates(self, short: str) -> tuple[str, ...]:
        """Return the names that end in `short`: `Wong2020Fast`, or `cifar10/Linf/Wong2020Fast`."""
        return tuple(name for name in self.names() if name.endswith(f"/{short}"))

    def info(self, name: str) -> ModelInfo:
        """Return the facts about a model, without RobustBench itself; see `Catalogue.info`."""
        entry = _entry(name)
        files = [download.file for download in _downloads(name, entry)]
        present = all(file.is_file() for file in files)
        dataset: str = entry["dataset"]
        standard = entry["name"].startswith("Standard")
        return ModelInfo(
            name=name,
            architecture=entry["architecture"] or "see RobustBench",
            dataset=_DATASETS[entry["preprocessing"]] if dataset == "imagenet" else dataset,
            num_classes=_CLASSES[dataset],
            threat=None if standard else _EPS[dataset, entry["threat"]],
            source=f"RobustBench {_table()['version']}",
            digest=None,
            size=sum(file.stat().st_size for file in files) if present else None,
            accuracies=_accuracies(entry),
            present=present,
            file=str(files[0]),
            url=next(iter(entry["files"].values())),
        )

    def load(self, name: str, weights: Path | None, num_classes: int | None) -> nn.Module:
        """Build a model with the number of classes of its dataset; see `Catalogue.load`."""
        entry = _entry(name)
        classes = _CLASSES[entry["dataset"]]
        if num_classes not in (None, classes):
            raise ConfigError(
                f"{name!r} has {counted(classes, 'class')}, but the data has {num_classes} "
                f"(num_classes). Choose a model trained for this data, or the dataset "
                f"{entry['dataset']}"
            )
        utils = import_robustbench("robustbench.utils")
        downloads = _downloads(name, entry)
        if weights is not None and len(downloads) > 1:
            raise ConfigError(
                f"{name!r} is made of {counted(len(downloads), 'file')} and cannot use one: put "
                "them at " + ", ".join(str(download.file) for download in downloads)
            )
        files = [weights] if weights is not None else [download.obtain() for download in downloads]
        if downloads[0].url.startswith("https://github.com/"):
            return _load_registered_with_timm(entry, files[0])
        return _load_with_robustbench(utils, entry, files)


def _load_with_robustbench(utils: Any, entry: dict[str, Any], files: list[Path]) -> nn.Module:
    contents = [read_checkpoint(file) for file in files]
    with tempfile.TemporaryDirectory(prefix="dent-robustbench-") as scratch:
        folder = Path(scratch) / entry["dataset"] / entry["threat"]
        folder.mkdir(parents=True)
        for name, content in zip(entry["files"], contents, strict=True):
            torch.save(content, folder / name)
        try:
            model: nn.Module = utils.load_model(
                entry["name"],
                model_dir=scratch,
                dataset=entry["dataset"],
                threat_model=entry["threat"],
            )
        except DentError:
            raise
        except Exception as error:
            raise WeightsError(_unfit(files, entry, f"{type(error).__name__}: {error}")) from error
    _check_arrived(model, contents, files, entry)
    return model


def _load_registered_with_timm(entry: dict[str, Any], file: Path) -> nn.Module:
    """Load one of the three architectures that RobustBench only registers with timm."""
    words = (entry["name"].lower().replace("-", "_"), entry["dataset"], entry["threat"].lower())
    timm = require("timm", PURPOSE, extra="zoo")
    model: nn.Module = timm.create_model("_".join(words), num_classes=_CLASSES[entry["dataset"]])
    inner = getattr(model, "model", model)  # CIFAR models are wrapped with a normalization
    fit_weights(inner, read_weights(file), origin=str(file))
    return model


def _check_arrived(
    model: nn.Module, contents: list[object], files: list[Path], entry: dict[str, Any]
) -> None:
    """Check that the files set every parameter, since RobustBench accepts files that fit partly."""
    present = {_content(tensor) for content in contents for tensor in _tensors(content)}
    parameters = dict(model.named_parameters())
    absent = [name for name, value in parameters.items() if _content(value) not in present]
    if absent:
        raise WeightsError(
            _unfit(
                files,
                entry,
                f"{len(absent)} of {len(parameters)} parameters did not come from the file, first "
                f"{absent[0]}",
            )
        )
    broken = [name for name, value in parameters.items() if not value.isfinite().all()]
    if broken:
        raise WeightsError(_unfit(files, entry, f"{broken[0]} contains NaN or infinite values"))


def _unfit(files: list[Path], entry: dict[str, Any], reason: str) -> str:
    return (
        f"{', '.join(map(str, files))} does not contain the weights of RobustBench's "
        f"{entry['name']} "
        f"({entry['dataset']}, {entry['threat']}): {reason}\nDelete it and download it again, or "
        "name its own model"
    )


def _content(tensor: Tensor) -> tuple[tuple[int, ...], int]:
    values = tensor.detach().to(torch.float32).contiguous().reshape(-1)
    return tuple(tensor.shape), hash(values.view(torch.uint8).numpy().tobytes())


def _tensors(content: object) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _tensors(value)


def _accuracies(entry: dict[str, Any]) -> tuple[Accuracy, ...]:
    if entry["clean"] is None:
        return ()
    dataset = entry["dataset"]
    images = _IMAGES[dataset]
    where = f"RobustBench {_table()['version']}, leaderboard of its README"
    return (
        Accuracy(round(float(entry["clean"]) * images / 100), images, where),
        Accuracy(
            round(float(entry["robust"]) * images / 100),
            images,
            f"{where}; the lower of AutoAttack and, where it lists one, another evaluation",
            threat=_EPS[dataset, entry["threat"]],
            attack="AutoAttack",
        ),
    )


def _downloads(name: str, entry: dict[str, Any]) -> list[Download]:
    folder = models_root() / "robustbench" / entry["dataset"] / entry["threat"]
    return [
        Download(name, folder / file, url, None, _fetch) for file, url in entry["files"].items()
    ]


def _fetch(url: str, path: Path) -> None:
    if "drive.google.com" not in url:
        fetch_url(url, path)
        return
    # Google Drive asks for confirmation before it sends a large file; gdown handles that. Since
    # it leaves its own temporary file when it fails, it gets a folder to leave it in.
    gdown = require("gdown", PURPOSE, extra="zoo")
    with tempfile.TemporaryDirectory(prefix=f"{path.name}-", dir=path.parent) as scratch:
        arrived = Path(scratch) / "weights"
        # gdown sets no time limit for its connections.
        run_with_limit(
            lambda: gdown.download(url, str(arrived), quiet=True), Path(scratch), _DRIVE_SECONDS
        )
        if not arrived.is_file():
            raise OSError("Google Drive gave no file")
        os.replace(arrived, path)


def _entry(name: str) -> dict[str, Any]:
    models: dict[str, dict[str, Any]] = _table()["models"]
    if name not in models:
        raise UnknownNameError(unlisted(f"RobustBench {_table()['version']}", name, models))
    return models[name]


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text())
    table["models"] = {
        "/".join(("robustbench", entry["dataset"], entry["threat"], entry["name"])): entry
        for entry in table["models"]
    }
    return table
