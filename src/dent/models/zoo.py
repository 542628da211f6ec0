"""The one registry of models, and the one function that loads any model by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dent.errors import ConfigError, UnknownNameError, WeightsError
from dent.models import factory
from dent.models.autoattack_resnet18 import AutoAttackExample
from dent.models.residual import EXAMPLES, is_member, parse, resnet
from dent.models.suggest import did_you_mean
from dent.models.weights import fit_weights, read_weights

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dent.models.info import ModelInfo, Source

#: Where registered models come from, in the order of their listing.
SOURCES: tuple[Source, ...] = (AutoAttackExample(),)


def names() -> tuple[str, ...]:
    """The names of all registered models, present on this machine or not."""
    return tuple(entry.name for source in SOURCES for entry in source.entries())


def info(name: str) -> ModelInfo:
    """What is known of a registered model without loading it.

    Raises:
        UnknownNameError: If no model is registered under that name. Family names such as
            `resnet-26-4` and factories are not: they have no weights of their own to tell about.
    """
    return _registered(name)[1]


def load(
    name: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Loads a trained model in eval mode, taking images in [0, 1] and returning logits.

    Args:
        name: A registered name (`names()`), a family name `resnet-{depth}-{width}` together with
            `weights`, or a factory of your own `package.module:factory`, found from the current
            folder or installed, which is imported and called without arguments.
        weights: A `.safetensors` or weights-only torch file for a family or a factory (a factory
            may also load its own). Registered models bring theirs.
        num_classes: Logits per image: what a family net is built with (default 10) and what a
            registered model must have. A factory decides alone; `check_model` then compares.
        device: Where to put the model.

    Returns:
        The model in eval mode. A factory's model is not run here; `check_model` does.

    Raises:
        UnknownNameError: If nothing goes by that name; the message suggests what does.
        WeightsError: If the weights are missing, damaged, refused, or do not fit.
        UnsupportedModelError: If the factory raises or returns no model.
        ConfigError: If the arguments contradict each other or the device is not available.
    """
    path = None if weights is None else Path(weights).expanduser()
    if ":" in name:
        model = factory.build(name)
    elif is_member(name):
        parse(name)
        if path is None:
            raise WeightsError(
                f"{name!r} is an architecture without trained weights: give weights=FILE "
                f"(--weights FILE), or load one of {', '.join(names())}. For random weights there "
                f"is dent.models.resnet({name!r})"
            )
        model = resnet(name, 10 if num_classes is None else num_classes)
    else:
        return _place(_load_registered(name, path, num_classes), device)
    if path is not None:
        fit_weights(model, read_weights(path), origin=str(path))
    return _place(model, device)


def _load_registered(name: str, path: Path | None, num_classes: int | None) -> nn.Module:
    source, entry = _registered(name)
    if path is not None:
        raise ConfigError(
            f"{name!r} brings its own weights ({entry.source}), got weights={path} too: leave them "
            "out, or name an architecture (resnet-26-4, package.module:factory)"
        )
    if num_classes not in (None, entry.num_classes):
        raise ConfigError(
            f"{name!r} has {entry.num_classes} classes ({entry.dataset}), got "
            f"num_classes={num_classes}: choose a model trained for your dataset"
        )
    return source.load(name)


def _registered(name: str) -> tuple[Source, ModelInfo]:
    known = {entry.name: (source, entry) for source in SOURCES for entry in source.entries()}
    if name not in known:
        hint = did_you_mean(name, (*known, *EXAMPLES))
        if "/" in name or name.endswith((".pt", ".pth", ".safetensors")):
            hint = " A weights file goes into weights=, beside the name of its architecture."
        raise UnknownNameError(
            f"no model named {name!r}.{hint} There are: {', '.join(known)}; with weights of your "
            "own resnet-{depth}-{width} such as resnet-26-4, or package.module:factory"
        )
    return known[name]


def _place(model: nn.Module, device: str | torch.device) -> nn.Module:
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"cannot put the model on device {str(device)!r}: {reason}; cpu always works"
        ) from error
