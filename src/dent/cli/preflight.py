"""Check what the user typed before anything is loaded, fetched or measured."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dent import names
from dent.errors import ConfigError, WeightsError
from dent.storage.protected import refuse_record
from dent.support.extras import check
from dent.support.reaching import unreachable

_ZOO: Final = {
    "timm": ("timm", "a timm model", "zoo"),
    "robustbench": ("robustbench", "a RobustBench model", "zoo"),
    "hf": ("transformers", "a model of the Hugging Face hub", "hf"),
}
"""By zoo: the module that its models need, the feature to name in a message, and its extra."""


def check_writable(*folders: Path | None, files: Iterable[Path | None] = ()) -> None:
    """Refuse folders and files that cannot be written.

    Raises:
        ConfigError: As in `check_folder` and `check_file`.
    """
    for path in filter(None, folders):
        check_folder(path)
    for path in filter(None, files):
        check_file(path)


def check_folder(out: str | Path) -> None:
    """Refuse a folder that cannot be written to. URLs are checked when they are opened.

    Raises:
        ConfigError: It is a file, or is in a place where this user may not write.
    """
    if "://" in str(out):
        return
    path = Path(out).expanduser()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{out} is a file, but a folder is needed: choose another name")
    _writable(path, out)


def check_file(out: Path) -> None:
    """Refuse a file that cannot be written, or must not be replaced.

    Raises:
        ConfigError: It is a folder, is in a place where this user may not write, or is one of the
            records of a run.
    """
    if out.is_dir():
        raise ConfigError(f"{out} is a folder, but a file is needed: add a file name")
    _writable(out.parent, out)
    refuse_record(out)


def check_files_exist(weights: Path | None, defenses: Iterable[str] = ()) -> None:
    """Refuse weights and defenses' JSON files that do not exist.

    Raises:
        WeightsError: The weights file does not exist.
        ConfigError: A defense's JSON file does not exist.
    """
    # The part after # is a key in the file.
    if weights is not None:
        path = weights.expanduser()
        if not path.exists() and not Path(str(path).partition("#")[0]).exists():
            raise WeightsError(
                f"no weights file at {weights} (looked from {Path.cwd()}): check the path"
            )
    for spec in defenses:
        if spec.lower().endswith(".json") and not Path(spec).expanduser().is_file():
            raise ConfigError(f"--defense {spec}: no such file")


def check_data_folder(dataset: str | None, root: Path | None) -> None:
    """Refuse a folder of datasets for a dataset that comes from a factory.

    Args:
        dataset: The value of `--dataset`; None without the option.
        root: The value of `--data`; None without the option.

    Raises:
        ConfigError: Both are given, and the dataset is a factory.
    """
    if dataset is not None and ":" in dataset and root is not None:
        raise ConfigError(
            f"--data is for named datasets, and {dataset} is a factory: leave out --data"
        )


def check_model(name: str) -> None:
    """Refuse a model of a zoo whose package is not installed.

    Raises:
        MissingExtraError: The package is not installed. The message says how to install it.
    """
    prefix = name.partition("/")[0]
    if prefix not in names.CATALOGUES:
        is_complete = ":" in name or name in names.models() or names.is_family(name)
        prefix = "" if is_complete else "robustbench"  # named without its prefix
    if prefix in _ZOO:
        module, purpose, extra = _ZOO[prefix]
        check(module, purpose, extra=extra)


def check_cluster(address: str | None) -> None:
    """Refuse `--ray` if Ray is not installed or the cluster does not answer.

    Args:
        address: The value of `--ray`: None without the option, "" for the bare option.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: Nothing answers at the address, or at the address in RAY_ADDRESS.
    """
    if address is None:
        return
    check("ray", "distributed evaluation", extra="ray")
    if not address.startswith("ray://"):  # such an address is refused later
        check_reachable(address)


def check_reachable(address: str | None = None) -> None:
    """Refuse a cluster that does not answer.

    Args:
        address: Its address; by default the address in RAY_ADDRESS, if it is set.

    Raises:
        ConfigError: Nothing answers there.
    """
    problem = unreachable(address or None)
    if problem is not None:
        raise ConfigError(problem)


def _writable(path: Path, typed: str | Path) -> None:
    existing = next(ancestor for ancestor in (path, *path.absolute().parents) if ancestor.exists())
    if not existing.is_dir():
        raise ConfigError(f"{typed} cannot be written: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{typed} cannot be written: you may not write to {existing}")
