"""What a shell offers on TAB where a command takes a name."""

from collections.abc import Iterable

from dent import names


def models(incomplete: str) -> list[str]:
    """Names for `--model`; those of a zoo once its prefix is written."""
    prefix = incomplete.partition("/")[0]
    if "/" in incomplete and prefix in names.CATALOGUES:
        return _begun(names.catalogue(prefix), incomplete)
    prefixes = (f"{each}/" for each in names.CATALOGUES)
    return _begun((*names.models(), *names.FAMILY, *prefixes), incomplete)


def families(incomplete: str) -> list[str]:
    """Names for `--model` of what is trained."""
    return _begun(names.FAMILY, incomplete)


def datasets(incomplete: str) -> list[str]:
    """Names for `--dataset`."""
    return _begun(names.DATASETS, incomplete)


def defenses(incomplete: str) -> list[str]:
    """Names for `--defense`."""
    return _begun(names.DEFENSES, incomplete)


def attacks(incomplete: str) -> list[str]:
    """Names for `--attack`."""
    return _begun(names.ATTACKS, incomplete)


def recipes(incomplete: str) -> list[str]:
    """Names for `--recipe`."""
    return _begun((*names.RECIPES, *names.RECIPE_FAMILIES), incomplete)


def tables(incomplete: str) -> list[str]:
    """Names of tables of the paper."""
    return _begun(names.TABLES, incomplete)


def scales(incomplete: str) -> list[str]:
    """Names for `--scale`."""
    return _begun(names.SCALES, incomplete)


def catalogues(incomplete: str) -> list[str]:
    """Names for `--source` of models."""
    return _begun(names.CATALOGUES, incomplete)


def _begun(known: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in known if name.startswith(incomplete)]
