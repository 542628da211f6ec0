"""From what the user typed to objects: models, datasets, defenses, attacks, threat models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from dent import data, models, reference
from dent.attacks import Attack, Defense, make
from dent.cli.console import ERR
from dent.data import ImageDataset
from dent.errors import ConfigError, InputError
from dent.evaluation import Subject
from dent.evaluation.sweep import Over, Value
from dent.threat import ThreatModel


def device(name: str | None) -> torch.device:
    """Return the device of that name; the GPU, if there is one, where none is given.

    Raises:
        ConfigError: there is no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {error}") from error
    return chosen


def dataset(name: str, root: Path | None, split: Literal["test", "train"] = "test") -> ImageDataset:
    """Return a dataset, fetched with a progress bar where it is not here yet."""
    with data.progress_bar(ERR) as report:
        return data.load(name, split, root=root, progress=report)


def model(
    name: str, weights: Path | None, images: ImageDataset, device: torch.device
) -> torch.nn.Module:
    """Return a model in eval mode with the dataset's classes, checked on two of its images."""
    loaded = models.load(name, weights=weights, num_classes=len(images.classes), device=device)
    sample, _ = images.batch(range(min(2, len(images))))
    models.check_model(loaded, len(images.classes), sample.to(device))
    return loaded


def attacks(names: Sequence[str], iterations: int | None, protocol: str) -> list[Attack]:
    """Return attacks by name; `iterations` and `protocol` go to those that have them.

    Raises:
        ConfigError: no attack chosen has such a setting.
    """
    chosen = []
    for name in names:
        settings: dict[str, Any] = {"iterations": iterations}
        if not name.startswith("pgd"):
            settings["protocol"] = protocol
        elif protocol != "frozen":
            raise ConfigError(
                f"protocol={protocol!r} is AutoAttack's own; {name} has none. Drop --protocol."
            )
        chosen.append(make(name, **settings))
    return chosen


def defenses(specs: Sequence[str], wrapped: torch.nn.Module) -> dict[str, Defense]:
    """Return defenses of one model by what the user typed, which is also what they are called.

    Raises:
        ConfigError: one was asked for twice.
    """
    made: dict[str, Defense] = {}
    for spec in specs:
        name = Path(spec).stem if spec.lower().endswith(".json") else spec
        if name in made:
            raise ConfigError(f"two defenses are called {name!r}: name each one once")
        made[name] = reference.make(spec, wrapped)
    return made


def subject(
    model_name: str,
    images: ImageDataset,
    wrapped: torch.nn.Module,
    made: dict[str, Defense],
    chosen: Sequence[Attack],
    threat: ThreatModel,
) -> Subject:
    """Return what is evaluated.

    Raises:
        InputError: a sample of the dataset is not inside the threat model's bounds.
    """
    sample, _ = images.batch([0])
    low, high = threat.bounds
    if not low <= float(sample.min()) <= float(sample.max()) <= high:
        raise InputError(
            f"{images.name} has pixels outside the bounds {low:g} to {high:g} of the threat model."
        )
    return Subject(
        model=wrapped,
        dataset=images,
        defenses=made,
        attacks=tuple(chosen),
        threat=threat,
        model_name=model_name,
    )


def swept(text: str) -> tuple[Over, list[Value]]:
    """Read `batch-size=1,2,4`, `eps=2/255,8/255`, `order=dataset,by-class` and the like.

    Raises:
        ConfigError: the setting or a value is none.
    """
    name, _, listed = text.partition("=")
    known: dict[str, Over] = {over.replace("_", "-"): over for over in get_args(Over)}
    if name not in known or not listed:
        raise ConfigError(
            f"--sweep expected SETTING=VALUE,VALUE with one of {', '.join(known)}, got {text!r}."
        )
    kind = {"batch_size": int, "n": int, "seed": int, "mix": float}.get(known[name], str)
    try:
        return known[name], [kind(value) for value in listed.split(",")]
    except ValueError as error:
        raise ConfigError(f"--sweep {text}: {error}.") from error
