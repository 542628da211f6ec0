"""Make defenses by name, from a JSON file, or from the user's own factory."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from torch import nn

from dent.config import PRESETS, DentConfig, SmoothingConfig, ViewsConfig
from dent.defenses.anti_adversary import AntiAdversary
from dent.defenses.base import STATIC, ReferenceDefense
from dent.defenses.dent import Dent
from dent.defenses.et3 import ET3
from dent.defenses.hedge import Hedge
from dent.defenses.mean_sparse import MeanSparse
from dent.defenses.med_bn import MedBN
from dent.defenses.tent_online import TentOnline
from dent.errors import ConfigError, DentError, UnknownNameError, UnsupportedModelError
from dent.kinds import path_of, recorded_kind
from dent.names import unknown_defense
from dent.support.factories import call_factory, type_name

if TYPE_CHECKING:
    from dent.attacks.protocol import DynamicDefense

CONFIGS: Final[Mapping[str, DentConfig]] = {
    "static": STATIC,
    **PRESETS,
    "statistics-only": DentConfig(steps=0, statistics="test"),
    "smoothing": DentConfig(steps=0, smoothing=SmoothingConfig(sigma=0.5, learn=False)),
    "tte": DentConfig(steps=0, views=ViewsConfig()),
    "tte-13": DentConfig(steps=0, views=ViewsConfig(count=13)),
}
"""The defenses that are configurations of `Dent`, by name."""

_CLASSES: Final[Mapping[str, Callable[[nn.Module], ReferenceDefense]]] = {
    "tent-online": TentOnline,
    "anti-adversary": AntiAdversary,
    "hedge": Hedge,
    "et3": ET3,
    "mean-sparse": MeanSparse,
    "med-bn": MedBN,
}

KINDS: Final[Mapping[str, str]] = {name: recorded_kind(name) for name in _CLASSES}
"""The classes of the other defenses, by name, as records write them."""

_PROTOCOL = ("adapt", "predict", "batch_dependent")


def names() -> tuple[str, ...]:
    """Return the names that `make` knows."""
    return (*CONFIGS, *_CLASSES)


def make(spec: str, model: nn.Module) -> "DynamicDefense":
    """Make a defense of a model.

    Args:
        spec: one of `names()`; or the path of a JSON file with fields of `DentConfig`, ending in
            `.json`; or your own `package.module:factory`. A factory is called with a copy of the
            model. It returns a defense (`adapt`, `predict`, `batch_dependent`), or any other
            nn.Module, which becomes a static defense.
        model: the classifier. It is not changed.

    Returns:
        The defense. `predict(x, adapt(x))` predicts a batch.

    Raises:
        UnknownNameError: there is no such defense, module or factory.
        ConfigError: the JSON file is missing, unreadable, or not a configuration; or `spec` is not
            a text.
        UnsupportedModelError: the defense does not support this model, or the factory failed or
            returned something else; or `model` is no module.
    """
    _check_arguments(spec, model)
    if spec in CONFIGS:
        return Dent(model, CONFIGS[spec])
    if spec in _CLASSES:
        return _CLASSES[spec](model)
    if spec.lower().endswith(".json"):
        return Dent(model, load_config(spec))
    if ":" in spec:
        # A copy, because code that adapts in place must not change the model of other defenses.
        defense = call_factory(
            spec,
            copy.deepcopy(model),
            kind="takes the model",
            called="with the model as its one argument",
        )
        return _own(spec, defense)
    raise UnknownNameError(unknown_defense(spec, names()))


def _check_arguments(spec: object, model: object) -> None:
    if isinstance(spec, DentConfig):
        raise ConfigError(
            "make takes the name of a defense: for a DentConfig, call Dent(model, config)."
        )
    if not isinstance(spec, str):
        raise ConfigError(
            "make takes the name of a defense, the path of a .json file or package.module:factory "
            f"as text, and then the model, got {type_name(spec)} first."
        )
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"make({spec!r}, model) expected a torch.nn.Module, got {type_name(model)}."
        )


def describe(defense: "DynamicDefense | nn.Module") -> dict[str, Any]:
    """Return the description of a defense for records, as plain JSON types.

    Args:
        defense: any defense. Your own may have attributes `stateful` and `randomized`, and a method
            `describe()` that returns any of the keys below.

    Returns:
        `name`; `settings`, a dict; and the flags `batch_dependent`, `stateful` (predictions depend
        on earlier batches) and `randomized` (the same batch can get different predictions).

    Raises:
        ConfigError: `defense.describe()` does not return a dict of plain JSON types.
    """
    described: dict[str, Any] = {
        "name": path_of(defense),
        "settings": {},
        "batch_dependent": bool(getattr(defense, "batch_dependent", False)),
        "stateful": bool(getattr(defense, "stateful", False)),
        "randomized": bool(getattr(defense, "randomized", False)),
    }
    if isinstance(defense, Dent):
        described |= {"name": _name(defense.config), "settings": defense.config.to_dict()}
        precision = defense.performance.precision
        return described if precision == "model" else described | {"precision": precision}
    own_description = getattr(defense, "describe", None)
    if not callable(own_description):
        return described
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(own_description()), allow_nan=False))
    except DentError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{described['name']}.describe() must return a dict of plain JSON types: {error}."
        ) from error
    return described | plain


def _name(config: DentConfig) -> str:
    for name, candidate in CONFIGS.items():
        if config == candidate:
            return name
    if config.steps:
        return "dent-custom"
    own = config.statistics != "test"  # without a step, "moving" is the same as "train"
    if config.views is not None and config.views.predict != "image":
        return "tte" if config.smoothing is None and own else "dent-custom"
    if config.smoothing is None:
        return "static" if own else "statistics-only"
    return "smoothing" if own else "dent-custom"


def _own(spec: str, defense: object) -> "DynamicDefense":
    missing = [part for part in _PROTOCOL if not hasattr(defense, part)]
    if not missing:
        return cast("DynamicDefense", defense)
    if isinstance(defense, nn.Module) and len(missing) == len(_PROTOCOL):
        return Dent(defense, STATIC)
    raise UnsupportedModelError(
        f"{spec} must give a defense with adapt(x), predict(x, adaptation) and batch_dependent, or "
        "a torch.nn.Module that takes a batch and returns logits, got "
        f"{type_name(defense)} without {', '.join(missing)}."
    )


def load_config(path: str | Path) -> DentConfig:
    """Read the configuration of a defense.

    Args:
        path: a UTF-8 file holding one JSON object with fields of `DentConfig`; absent fields take
            their defaults.

    Raises:
        ConfigError: the file is missing or unreadable, is not JSON, or holds an unknown key or a
            value out of range, and the message names the file; or `path` is not a path.
    """
    given: object = path
    if not isinstance(given, str | Path):
        raise ConfigError(f"load_config takes the path of a JSON file, got {type_name(given)}.")
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows write a mark first
    except FileNotFoundError:
        raise ConfigError(
            f"There is no configuration file {path} (looked in {path.absolute().parent})."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} expected JSON in UTF-8, got bytes that are not.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        return DentConfig.from_json(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
