"""The registry of models, and the function that loads any model by name."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from dent.errors import ConfigError, MissingExtraError, UnknownNameError, WeightsError
from dent.models import factory, robustbench_source
from dent.models.autoattack_resnet18 import AutoAttackExample
from dent.models.hub_source import HuggingFace
from dent.models.residual import is_member, parse, resnet
from dent.models.robustbench_source import RobustBench
from dent.models.shipped_source import ShippedModels
from dent.models.timm_source import Timm
from dent.models.torchvision_source import Torchvision
from dent.models.weights import fit_weights, read_weights
from dent.names import add_ends, unknown_model
from dent.support.factories import type_name
from dent.support.plural import counted
from dent.support.suggest import unknown

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dent.models.info import Catalogue, ModelInfo, Source

#: The sources of models that are installed with this package, in the order of their listing.
SOURCES: tuple[Source, ...] = (ShippedModels(), AutoAttackExample())

#: Other zoos, whose models are named `{prefix}/...` and must be downloaded.
CATALOGUES: tuple[Catalogue, ...] = (RobustBench(), Torchvision(), Timm(), HuggingFace())


def names(catalogue: str | None = None) -> tuple[str, ...]:
    """Return the names of registered models, whether or not they are on this machine.

    Args:
        catalogue: `"robustbench"`, `"torchvision"` or `"timm"` for all models of that zoo, `"hf"`
            for the models of the Hugging Face hub that are on this machine. By default, the models
            that come with this package and the paper's models.

    Raises:
        UnknownNameError: If there is no such catalogue.
        MissingExtraError: If the catalogue needs a package that is not installed (timm and hf do).
    """
    if catalogue is None:
        return (*_here(), *robustbench_source.PAPER)
    table = {source.prefix: source for source in CATALOGUES}
    if catalogue not in table:
        raise UnknownNameError(unknown("catalogue", catalogue, table))
    return table[catalogue].names()


def info(name: str) -> ModelInfo:
    """Return the facts about a registered model without loading it.

    Args:
        name: As in `load`, except family names and factories, which have no weights of their own.

    Raises:
        UnknownNameError: If no model is registered under that name, or more than one is.
        MissingExtraError: If the model's catalogue needs a package that is not installed.
    """
    _check_is_text(name)
    here = _here()
    if name in here:
        return here[name][1]
    catalogue, full = _catalogued(name)
    return catalogue.info(full)


def load(
    name: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Load a trained model in eval mode, which takes images in [0, 1] and returns logits.

    Args:
        name: A registered name: one of `names()`; one of `names("robustbench")`, in full
            (`robustbench/cifar10/Linf/Carmon2019Unlabeled`) or an unambiguous end of it
            (`Carmon2019Unlabeled`); `torchvision/resnet50`; `timm/resnet50.a1_in1k`;
            `hf/ORG/NAME` from the Hugging Face hub, or `hf/./FOLDER`. Or a family name
            `resnet-{depth}-{width}` together with `weights`. Or your own factory
            `package.module:factory`, in the current folder or installed, which is imported and
            called without arguments.
        weights: A `.safetensors` or weights-only torch file: for a family name, for a factory
            (which may also load its own), or for a catalogue's model, instead of the download. The
            models that come with this package have their own weights.
        num_classes: Logits per image. A family net is built with this number (default 10), as is a
            torchvision, timm or hf model together with `weights`. Every other registered model must
            have this number. A factory sets its own; `check_model` compares it with the dataset's.
        device: The device of the model.

    Returns:
        The model in eval mode. A factory's model is not run here; `check_model` runs it.

    Raises:
        UnknownNameError: If no model has that name, or more than one has; the message suggests
            names.
        WeightsError: If the weights are missing, damaged, refused, or do not fit.
        MissingExtraError: If the model needs a package that is not installed.
        UnsupportedModelError: If the factory raises an error or returns no model, or a model of the
            Hugging Face hub cannot be used.
        ConfigError: If the arguments contradict each other or the device is not available.
    """
    _check_is_text(name)
    path = None if weights is None else Path(weights).expanduser()
    if ":" in name:
        model = factory.build(name)
    elif is_member(name):
        parse(name)
        if path is None:
            raise WeightsError(
                f"{name!r} is an architecture without trained weights: pass weights=FILE "
                f"(--weights FILE), or load one of {', '.join(_here())}. For random weights there "
                f"is dent.models.resnet({name!r})"
            )
        model = resnet(name, 10 if num_classes is None else num_classes)
    else:
        return _place(_load_registered(name, path, num_classes), device)
    if path is not None:
        fit_weights(model, read_weights(path), origin=str(path))
    return _place(model, device)


def _load_registered(name: str, path: Path | None, num_classes: int | None) -> nn.Module:
    here = _here()
    if name not in here:
        catalogue, full = _catalogued(name)
        if path is None:
            _check_classes(catalogue.info(full), num_classes)
        return catalogue.load(full, path, num_classes)
    source, entry = here[name]
    if path is not None:
        raise ConfigError(
            f"{name!r} brings its own weights ({entry.source}), got weights={path} too: leave them "
            "out, or name an architecture (resnet-26-4, package.module:factory)"
        )
    _check_classes(entry, num_classes)
    return source.load(name)


def _check_classes(entry: ModelInfo, num_classes: int | None) -> None:
    if num_classes not in (None, entry.num_classes):
        raise ConfigError(
            f"{entry.name!r} has {counted(entry.num_classes, 'class')}, but the data has "
            f"{num_classes} (num_classes). Choose a model trained for this data, or the dataset "
            f"{entry.dataset}"
        )


def _here() -> dict[str, tuple[Source, ModelInfo]]:
    return {entry.name: (source, entry) for source in SOURCES for entry in source.entries()}


def _catalogued(name: str) -> tuple[Catalogue, str]:
    """Return the catalogue that has a model, and the model's full name there."""
    for catalogue in CATALOGUES:
        if name.startswith(f"{catalogue.prefix}/"):
            return catalogue, name
    matches = (
        [(catalogue, full) for catalogue in CATALOGUES for full in catalogue.candidates(name)]
        if name
        else []
    )
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UnknownNameError(
            f"{name!r} can mean {len(matches)} models: " + ", ".join(full for _, full in matches)
        )
    raise UnknownNameError(_unknown(name))


def _unknown(name: str) -> str:
    ends: dict[str, list[str]] = {}
    for catalogue in CATALOGUES:
        with contextlib.suppress(MissingExtraError):
            add_ends(ends, catalogue.names())
    return unknown_model(name, tuple(_here()), ends, [catalogue.prefix for catalogue in CATALOGUES])


def _place(model: nn.Module, device: str | torch.device) -> nn.Module:
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"cannot put the model on device {str(device)!r}: {reason}; cpu always works"
        ) from error


def _check_is_text(name: object) -> None:
    if not isinstance(name, str):
        raise ConfigError(
            f"a model is loaded by its name, such as 'resnet-14-2-linf', got {type_name(name)}. A "
            "module of your own needs no loading: pass it where a model is expected"
        )
