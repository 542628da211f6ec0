"""Every name that the command line takes, without loading what the names refer to.

Completion and misspelled names are answered from here, in a fraction of the time that torch takes
to load. A test holds each list to the registry that it repeats.
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
from dent.support.suggest import closest, did_you_mean

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
"""Other names of attacks, in upper or lower case: AutoAttack's own name and its abbreviation."""

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
"""Names that become a recipe together with a norm."""

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
"""Members of the family of nets that needs weights, for suggestions."""

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
"""Other model zoos; their models are named `robustbench/...`."""

_MODELS: Final = Path(__file__).parent / "models"
_CARD: Final = ".card.json"
_FAMILY_NAME: Final = re.compile(r"resnet-[0-9]{1,5}-[0-9]{1,5}")
_SHOWN: Final = 3
_HUB_NAME: Final = re.compile(
    r"hf/(?:(?:\.{1,2}|~)?/.*|\.{1,2}|[\w-][\w.-]*/[\w-][\w.-]*(?:@[\w-][\w./-]*)?)", re.ASCII
)


def models() -> tuple[str, ...]:
    """Models whose weights come with this package, or with what it needs."""
    return (*_shipped(), "resnet18-nominal")


@cache
def catalogue(name: str) -> tuple[str, ...]:
    """Models of a zoo in full, as the release knew them for which its table was written.

    None of the Hugging Face hub, which has no list.
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
    """Refuse names that no registry has.

    Args:
        model: A model's.
        dataset: A dataset's.
        defenses: Defenses'.
        attacks: Attacks'.
        own: Whether the dataset may be a factory of the user's own.

    Raises:
        UnknownNameError: There is none of that name; the message suggests one.
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
    """Refuse an unknown attack; a factory is left to `dent.attacks.from_factory`.

    Args:
        text: As `dent.attacks.make_from` takes it.

    Raises:
        UnknownNameError: There is none of that name.
    """
    name = "".join(text.split()).partition(":")[0]
    if full_attack(name) not in ATTACKS and not is_own_attack(text):
        raise UnknownNameError(unknown_attack(name, ATTACKS))


def is_own_attack(text: str) -> bool:
    """Whether an attack is written as a factory of the user's own, and not as a name.

    Args:
        text: `package.module:factory`, or as `dent.attacks.make_from` takes it.
    """
    name, colon, rest = "".join(text.split()).partition(":")
    return bool(colon and rest) and "=" not in rest and full_attack(name) not in ATTACKS


def full_attack(name: str) -> str:
    """The attack that another way to write it stands for (`aa`); another name as it is."""
    return ATTACK_ALIASES.get(name.lower(), name)


def check_defense(spec: str) -> None:
    """Refuse an unknown defense; a file and a factory are left to `dent.defenses.make`.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if spec not in DEFENSES and not spec.lower().endswith(".json") and ":" not in spec:
        raise UnknownNameError(unknown_defense(spec, DEFENSES))


def check_dataset(name: str, *, own: bool = False) -> None:
    """Refuse an unknown dataset; what follows its name is left to `dent.data.load`.

    Args:
        name: The dataset's.
        own: Whether the message names a factory as another choice.

    Raises:
        UnknownNameError: There is none of that name.
    """
    begins = ("imagenet-", "imagefolder-", "cifar10-c/", "cifar100-c/")
    if name not in DATASETS and not name.startswith(begins):
        factory = "; or package.module:factory for your own (docs/data.md)" if own else ""
        raise UnknownNameError(unknown("dataset", name, DATASETS) + factory)


def check_table(name: str) -> None:
    """Refuse an unknown table of the paper.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in TABLES:
        raise UnknownNameError(
            f"no table {name!r}.{did_you_mean(name, TABLES)} There are {', '.join(TABLES)}"
        )


def check_scale(name: str) -> None:
    """Refuse an unknown scale of the paper's tables.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in SCALES:
        raise UnknownNameError(f"no scale {name!r}; there are {', '.join(SCALES)}")


def check_tables(tables: Iterable[str], scale: str) -> None:
    """Refuse unknown tables of the paper, or an unknown scale of them.

    Raises:
        UnknownNameError: There is none of that name.
    """
    for name in tables:
        check_table(name)
    check_scale(scale)


def check_recipe(name: str, norm: str | None = None) -> None:
    """Refuse an unknown recipe of `dent train`.

    Args:
        name: As in `dent.training.named`.
        norm: The same.

    Raises:
        UnknownNameError: There is none of that name.
    """
    full = full_recipe(name, norm)
    if full not in RECIPES:
        all_names = (*RECIPES, *RECIPE_FAMILIES)
        raise UnknownNameError(
            f"no recipe named {full!r}.{did_you_mean(full, all_names)} There are: "
            f"{', '.join(all_names)}."
        )


def full_recipe(name: str, norm: str | None = None) -> str:
    """The recipe that a family's name and a norm stand for; another name as it is."""
    if name not in RECIPE_FAMILIES:
        return name
    return f"{name}-{norm or ('nominal' if name == 'fast' else 'linf')}"


def check_model(name: str) -> None:
    """Refuse an unknown model; the family's, and a factory, are left to `dent.models.load`.

    Raises:
        UnknownNameError: There is none of that name.
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
    """Refuse a name that has not the form of a model of the Hugging Face hub.

    Raises:
        UnknownNameError: The message says which forms there are.
    """
    if _HUB_NAME.fullmatch(name) is None or ".." in name.partition("@")[2]:
        raise UnknownNameError(
            f"{name!r} names no model of the Hugging Face hub: expected hf/ORG/NAME, "
            "hf/ORG/NAME@REVISION, or a folder as hf/./FOLDER or hf//FOLDER"
        )


def is_family(name: str) -> bool:
    """Whether a name has the form of the family of nets that needs weights."""
    return _FAMILY_NAME.fullmatch(name) is not None


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """The message about an unknown name of a short list."""
    near = closest(str(name), known)
    hint = f"; did you mean {near!r}?" if near else ""
    return f"there is no {what} {name!r}, only {', '.join(known)}{hint}"


def unknown_attack(name: str, known: Sequence[str]) -> str:
    """The message about an unknown attack."""
    near = closest(name, known)
    hint = f", did you mean {near!r}?" if near else ""
    return f"no attack is called {name!r}{hint}; there are {', '.join(known)}"


def unknown_defense(spec: str, known: Sequence[str]) -> str:
    """The message about an unknown defense."""
    return (
        f"There is no defense {spec!r}.{did_you_mean(spec, known)} Expected one of "
        f"{', '.join(known)}; the path of a JSON file (ending in .json); or "
        "package.module:factory."
    )


def add_ends(ends: dict[str, list[str]], names: Iterable[str]) -> None:
    """Add full names of models to the short ones that may stand for them."""
    for full in names:
        # Without timm's tag: each of its architectures has many.
        ends.setdefault(full.rpartition("/")[2].partition(".")[0], []).append(full)


def unknown_model(
    name: str, here: Sequence[str], ends: Mapping[str, list[str]], prefixes: Iterable[str]
) -> str:
    """The message about an unknown model.

    Args:
        name: The unknown name.
        here: Models that come with this package.
        ends: Full names of other models by the short ones that may stand for them.
        prefixes: Prefixes of the other zoos.
    """
    if name.endswith(WEIGHTS_FILES):
        hint = " A weights file goes into weights=, beside the name of its architecture."
    else:
        full_names = {full: [full] for full in (*here, *FAMILY)} | dict(ends)
        nearest = closest(name, full_names) or closest(name.partition(".")[0], full_names)
        near = full_names[nearest][:_SHOWN] if nearest else []
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return (
        f"no model named {name!r}.{hint} There are: {', '.join(here)}; more under "
        f"{', '.join(f'{prefix}/' for prefix in prefixes)} (`dent models` lists them); with "
        "weights of your own resnet-{depth}-{width} such as resnet-26-4, or package.module:factory"
    )


def unlisted(package: str, name: str, known: Iterable[str]) -> str:
    """The message about a model that a zoo of others does not have.

    Args:
        package: The zoo and its release.
        name: The unknown name in full.
        known: All that it has, in full.
    """
    prefix = name.partition("/")[0]
    hint, form = did_you_mean(name, known), ""
    if prefix == "robustbench":
        form = " Its names are robustbench/DATASET/NORM/NAME;"
        if name.endswith("/Standard_R50"):
            hint = " That is torchvision's ResNet-50: torchvision/resnet50.IMAGENET1K_V1."
    noun = "classifier" if prefix == "torchvision" else "model"  # it has detectors, too
    listed = f"`dent models --source {prefix}` lists them"
    return f"{package} has no {noun} {name!r}.{hint}{form} {listed}"


def _check_listed(package: str, name: str) -> None:
    """Refuse a model that a zoo, as installed, cannot have."""
    all_names, listed = catalogue(package), _table(package)["version"]
    if package == "robustbench":  # its table is all that is known of it
        is_listed = name in all_names
    else:
        model = name.partition("/")[2].partition(".")[0]
        is_listed = model in _table(package)["models"] or not _no_newer(package, listed)
    if not is_listed:
        label = {"robustbench": "RobustBench"}.get(package, package)
        raise UnknownNameError(unlisted(f"{label} {listed}", name, all_names))


def _no_newer(package: str, than: str) -> bool:
    """Whether a package is installed, and no newer than the release that was listed."""
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
