"""All names that the command line takes, without loading what the names refer to.

Completion and the check for misspelled names use these lists, in a fraction of the time that torch
takes to load. A test compares each list with the registry that it repeats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from dent.errors import UnknownNameError
from dent.support.suggest import closest, did_you_mean, unknown

ATTACKS: Final = (
    "adaptive-bpda",
    "adaptive-fewer-steps",
    "adaptive-stop-gradient",
    "adaptive-transfer",
    "adaptive-truncated",
    "adaptive-unrolled",
    "apgd-ce",
    "apgd-dlr",
    "apgd-t",
    "collateral",
    "fab",
    "fab-t",
    "fpa",
    "gmsa-avg",
    "gmsa-min",
    "pgd",
    "pgd-imagenet",
    "plus",
    "rays",
    "square",
    "standard",
    "surrogates",
    "zero-update",
)
"""The names of `dent.attacks.make`."""

ATTACK_ALIASES: Final[Mapping[str, str]] = {
    "autoattack": "standard",
    "auto-attack": "standard",
    "aa": "standard",
    "autoattack+": "plus",
    "aa+": "plus",
}
"""Other names of attacks, in upper or lower case: AutoAttack's name and its abbreviation."""

DEFENSES: Final = (
    "static",
    "dent",
    "dent+",
    "dent-nominal",
    "statistics-only",
    "smoothing",
    "tte",
    "tte-13",
    "tent-online",
    "anti-adversary",
    "hedge",
    "et3",
    "mean-sparse",
    "med-bn",
)
"""The names of `dent.defenses.make`."""

DATASETS: Final = (
    "cifar10",
    "cifar100",
    "cifar10-sample",
    "imagenet",
    "imagenet-288",
    "imagefolder",
    "imagefolder-288",
    "cifar10-c",
    "cifar100-c",
)
"""The names of `dent.data.load`."""

RECIPES: Final = (
    "nominal",
    "adversarial-linf",
    "adversarial-l2",
    "trades-linf",
    "trades-l2",
    "fast-nominal",
    "fast-linf",
    "fast-l2",
)
"""The names of `dent.training.RECIPES`."""

RECIPE_FAMILIES: Final = ("adversarial", "trades", "fast")
"""Names that give a recipe together with a norm."""

TABLES: Final = (
    *(f"table{number}" for number in range(1, 15)),
    "figure4",
    "section43",
    "section44",
    "readme",
)
"""The names of `dent.paper.load_table`."""

SCALES: Final = ("full", "gpu", "cpu-wide", "cpu")
"""The names of `dent.paper.load_scale`."""

FAMILY: Final = ("resnet-26-4", "resnet-32-10", "resnet-14-2")
"""Examples of the family of nets for which users must pass weights, for suggestions."""

WEIGHTS_FILES: Final = (
    ".safetensors",
    ".pt",
    ".pth",
    ".th",
    ".pyth",
    ".ckpt",
    ".tar",
    ".bin",
)
"""Suffixes of weights files."""

CATALOGUES: Final = ("robustbench", "torchvision", "timm", "hf")
"""Other model zoos; each is the prefix of its models' names, as in `robustbench/...`."""

_MODELS: Final = Path(__file__).parent / "models"
_CARD: Final = ".card.json"
_FAMILY_NAME: Final = re.compile(r"resnet-[0-9]{1,5}-[0-9]{1,5}")
_SHOWN: Final = 3
_HUB_NAME: Final = re.compile(
    r"hf/(?:(?:\.{1,2}|~)?/.*|\.{1,2}|[\w-][\w.-]*/[\w-][\w.-]*(?:@[\w-][\w./-]*)?)", re.ASCII
)


def models() -> tuple[str, ...]:
    """Return the models whose weights come with this package or with its dependencies."""
    return (*_shipped(), "resnet18-nominal")


@cache
def catalogue(name: str) -> tuple[str, ...]:
    """Return the full names of a zoo's models, as of the release that its table lists.

    Empty for the Hugging Face hub, which has no list.
    """
    if name == "hf":
        return ()
    if name == "robustbench":
        table = _table(name)["models"]
        return tuple("/".join((name, m["dataset"], m["threat"], m["name"])) for m in table)
    return tuple(
        f"{name}/{model}{tag and f'.{tag}'}"
        for model, tags in _table(name)["models"].items()
        for tag in tags
    )


def check(
    *,
    model: str | None = None,
    dataset: str | None = None,
    defenses: Iterable[str] = (),
    attacks: Iterable[str] = (),
    own: bool = False,
) -> None:
    """Check that all names are known.

    Args:
        model: The name of a model.
        dataset: The name of a dataset.
        defenses: Names of defenses.
        attacks: Names of attacks.
        own: Whether the dataset may be the user's own factory.

    Raises:
        UnknownNameError: A name is unknown; the message suggests one.
    """
    if dataset is not None and not (own and ":" in dataset):
        check_dataset(dataset, own=own)
    for spec in defenses:
        check_defense(spec)
    for text in attacks:
        check_attack(text)
    if model is not None:
        check_model(model)


def check_attack(text: str) -> None:
    """Check that an attack is known; `dent.attacks.from_factory` checks a factory.

    Args:
        text: The attack, as `dent.attacks.make_from` takes it.

    Raises:
        UnknownNameError: No attack has this name.
    """
    name = "".join(text.split()).partition(":")[0]
    if full_attack(name) not in ATTACKS and not is_own_attack(text):
        raise UnknownNameError(unknown_attack(name, ATTACKS))


def is_own_attack(text: str) -> bool:
    """Return whether an attack is written as the user's own factory, and not as a name.

    Args:
        text: `package.module:factory`, or as `dent.attacks.make_from` takes it.
    """
    name, colon, rest = "".join(text.split()).partition(":")
    return bool(colon and rest) and "=" not in rest and full_attack(name) not in ATTACKS


def full_attack(name: str) -> str:
    """Return the full name for an alias of an attack (`aa`), and any other name unchanged."""
    return ATTACK_ALIASES.get(name.lower(), name)


def check_defense(spec: str) -> None:
    """Check that a defense is known; `dent.defenses.make` checks a file or a factory.

    Raises:
        UnknownNameError: No defense has this name.
    """
    if spec not in DEFENSES and not spec.lower().endswith(".json") and ":" not in spec:
        raise UnknownNameError(unknown_defense(spec, DEFENSES))


def check_dataset(name: str, *, own: bool = False) -> None:
    """Check that a dataset is known; `dent.data.load` checks what follows its name.

    Args:
        name: The name of the dataset.
        own: Whether the message offers a factory as another choice.

    Raises:
        UnknownNameError: No dataset has this name.
    """
    begins = ("imagenet-", "imagefolder-", "cifar10-c/", "cifar100-c/")
    if name not in DATASETS and not name.startswith(begins):
        factory = "; or package.module:factory for your own (docs/data.md)" if own else ""
        expected = f"one of {', '.join(DATASETS)}{factory}"
        raise UnknownNameError(unknown("dataset", name, DATASETS, expected=expected))


def check_table(name: str) -> None:
    """Check that a table of the paper is known.

    Raises:
        UnknownNameError: No table has this name.
    """
    if name not in TABLES:
        raise UnknownNameError(unknown("table", name, TABLES))


def check_scale(name: str) -> None:
    """Check that a scale of the paper's tables is known.

    Raises:
        UnknownNameError: No scale has this name.
    """
    if name not in SCALES:
        raise UnknownNameError(unknown("scale", name, SCALES))


def check_tables(tables: Iterable[str], scale: str) -> None:
    """Check that tables of the paper, and their scale, are known.

    Raises:
        UnknownNameError: A table or the scale is unknown.
    """
    for name in tables:
        check_table(name)
    check_scale(scale)


def check_recipe(name: str, norm: str | None = None) -> None:
    """Check that a recipe of `dent train` is known.

    Args:
        name: The name, as `dent.training.named` takes it.
        norm: The norm, as `dent.training.named` takes it.

    Raises:
        UnknownNameError: No recipe has this name.
    """
    full = full_recipe(name, norm)
    if full not in RECIPES:
        raise UnknownNameError(unknown("recipe", full, (*RECIPES, *RECIPE_FAMILIES)))


def full_recipe(name: str, norm: str | None = None) -> str:
    """Return the recipe for a family's name and a norm, and any other name unchanged."""
    if name not in RECIPE_FAMILIES:
        return name
    return f"{name}-{norm or ('nominal' if name == 'fast' else 'linf')}"


def check_model(name: str) -> None:
    """Check that a model is known; `dent.models.load` checks the net family and factories.

    Raises:
        UnknownNameError: No model has this name.
    """
    if ":" in name or name in models() or is_family(name):
        return
    prefix = name.partition("/")[0]
    if prefix == "hf" and "/" in name:
        check_hub(name)
        return
    if prefix in CATALOGUES and "/" in name:
        _check_listed(prefix, name)
        return
    if name and any(full.endswith(f"/{name}") for full in catalogue("robustbench")):
        return
    ends: dict[str, list[str]] = {}
    for catalogue_name in CATALOGUES:
        add_ends(ends, catalogue(catalogue_name))
    raise UnknownNameError(unknown_model(name, models(), ends, CATALOGUES))


def check_hub(name: str) -> None:
    """Check that a name has the form of a model of the Hugging Face hub.

    Raises:
        UnknownNameError: It does not; the message says which forms are valid.
    """
    if _HUB_NAME.fullmatch(name) is None or ".." in name.partition("@")[2]:
        raise UnknownNameError(
            f"{name!r} names no model of the Hugging Face hub: expected hf/ORG/NAME, "
            "hf/ORG/NAME@REVISION, or a folder as hf/./FOLDER or hf//FOLDER"
        )


def is_family(name: str) -> bool:
    """Return whether a name belongs to the family of nets for which users must pass weights."""
    return _FAMILY_NAME.fullmatch(name) is not None


def unknown_attack(name: str, known: Sequence[str]) -> str:
    """Return the message about an unknown attack."""
    if name == "rand":
        return (
            "there is no attack 'rand'. It is AutoAttack's version for randomized defenses: use "
            "'adaptive-stop-gradient:submissions=20'"
        )
    return unknown("attack", name, known)


def unknown_defense(spec: str, known: Sequence[str]) -> str:
    """Return the message about an unknown defense."""
    listed = ", ".join(known)
    own = "the path of a JSON file (ending in .json); or package.module:factory"
    return unknown("defense", spec, known, expected=f"one of {listed}; {own}")


def add_ends(ends: dict[str, list[str]], names: Iterable[str]) -> None:
    """Add full names of models to `ends`, under the short names that may mean them."""
    for full in names:
        # Drop timm's tag, because one architecture has many tags.
        ends.setdefault(full.rpartition("/")[2].partition(".")[0], []).append(full)


def unknown_model(
    name: str, here: Sequence[str], ends: Mapping[str, list[str]], prefixes: Iterable[str]
) -> str:
    """Return the message about an unknown model.

    Args:
        name: The unknown name.
        here: Models that come with this package.
        ends: Full names of other models by the short names that may mean them.
        prefixes: Prefixes of the other zoos.
    """
    if name.endswith(WEIGHTS_FILES):
        hint = " A weights file goes into weights=, beside the name of its architecture."
    else:
        full_names = {full: [full] for full in (*FAMILY, *here)} | dict(ends)
        nearest = closest(name, full_names) or closest(name.partition(".")[0], full_names)
        near = full_names[nearest][:_SHOWN] if nearest else []
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return (
        f"there is no model {name!r}.{hint} Expected one of {', '.join(here)}; more under "
        f"{', '.join(f'{prefix}/' for prefix in prefixes)} (`dent models` lists them); with "
        "weights of your own resnet-{depth}-{width} such as resnet-26-4, or package.module:factory"
    )


def unlisted(package: str, name: str, known: Iterable[str]) -> str:
    """Return the message about a model that another zoo does not have.

    Args:
        package: The zoo and its release.
        name: The full unknown name.
        known: The full names of all its models.
    """
    prefix = name.partition("/")[0]
    hint, form = did_you_mean(name, known), ""
    if prefix == "robustbench":
        form = " Its names are robustbench/DATASET/NORM/NAME;"
        if name.endswith("/Standard_R50"):
            hint = " That is torchvision's ResNet-50: torchvision/resnet50.IMAGENET1K_V1."
    noun = "classifier" if prefix == "torchvision" else "model"  # torchvision has detectors, too
    listed = f"`dent models --source {prefix}` lists them"
    return f"{package} has no {noun} {name!r}.{hint}{form} {listed}"


def _check_listed(package: str, name: str) -> None:
    """Check that a zoo has a model, or may have it in another release than the listed one."""
    all_names, listed = catalogue(package), _table(package)["version"]
    if package == "robustbench":  # only its table says which models it has
        is_listed = name in all_names
    else:
        model = name.partition("/")[2].partition(".")[0]
        is_listed = model in _table(package)["models"] or not _no_newer(package, listed)
    if not is_listed:
        label = {"robustbench": "RobustBench"}.get(package, package)
        raise UnknownNameError(unlisted(f"{label} {listed}", name, all_names))


def _no_newer(package: str, than: str) -> bool:
    """Return whether a package is installed in the release `than` or an older one."""
    try:
        installed = _numbers(version(package))
    except PackageNotFoundError:
        return False
    listed = _numbers(than)
    return installed[: len(listed)] <= listed


def _numbers(release: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", release.partition("+")[0])]


def _shipped() -> tuple[str, ...]:
    files = sorted((_MODELS / "shipped").glob(f"*{_CARD}"))
    return tuple(file.name.removesuffix(_CARD) for file in files)


@cache
def _table(name: str) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((_MODELS / "tables" / f"{name}.json").read_text())
    return table
