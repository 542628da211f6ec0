"""The names that a shell offers on TAB."""

from collections.abc import Iterable

from dent import names


def models(incomplete: str) -> list[str]:
    """Names for `--model`; those of a zoo once its prefix is written."""
    prefix = incomplete.partition("/")[0]
    if "/" in incomplete and prefix in names.CATALOGUES:
        return _starting_with(names.catalogue(prefix), incomplete)
    prefixes = (f"{catalogue}/" for catalogue in names.CATALOGUES)
    return _starting_with((*names.models(), *names.FAMILY, *prefixes), incomplete)


def families(incomplete: str) -> list[str]:
    """Names for `--model` of what is trained."""
    return _starting_with(names.FAMILY, incomplete)


def datasets(incomplete: str) -> list[str]:
    """Names for `--dataset`."""
    return _starting_with(names.DATASETS, incomplete)


def defenses(incomplete: str) -> list[str]:
    """Names for `--defense`."""
    return _starting_with(names.DEFENSES, incomplete)


def attacks(incomplete: str) -> list[str]:
    """Names for `--attack`."""
    return _starting_with(names.ATTACKS, incomplete)


def recipes(incomplete: str) -> list[str]:
    """Names for `--recipe`."""
    return _starting_with((*names.RECIPES, *names.RECIPE_FAMILIES), incomplete)


def tables(incomplete: str) -> list[str]:
    """Names of tables of the paper."""
    return _starting_with(names.TABLES, incomplete)


def board_tracks(incomplete: str) -> list[str]:
    """Names of tracks of the board."""
    from dent.board.tracks import tracks as known

    return _starting_with(known(), incomplete)


def scales(incomplete: str) -> list[str]:
    """Names for `--scale`."""
    return _starting_with(names.SCALES, incomplete)


def catalogues(incomplete: str) -> list[str]:
    """Names for `--source` of models."""
    return _starting_with(names.CATALOGUES, incomplete)


def _starting_with(all_names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in all_names if name.startswith(incomplete)]
