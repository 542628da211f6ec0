"""The names that a shell completes on TAB."""

from collections.abc import Iterable

from dent import names


def models(incomplete: str) -> list[str]:
    """Return names for `--model`. The names of a zoo come after its prefix is typed."""
    prefix = incomplete.partition("/")[0]
    if "/" in incomplete and prefix in names.CATALOGUES:
        return _starting_with(names.catalogue(prefix), incomplete)
    prefixes = (f"{catalogue}/" for catalogue in names.CATALOGUES)
    return _starting_with((*names.models(), *names.FAMILY, *prefixes), incomplete)


def families(incomplete: str) -> list[str]:
    """Return names for `--model` of `dent train`."""
    return _starting_with(names.FAMILY, incomplete)


def datasets(incomplete: str) -> list[str]:
    """Return names for `--dataset`."""
    return _starting_with(names.DATASETS, incomplete)


def defenses(incomplete: str) -> list[str]:
    """Return names for `--defense`."""
    return _starting_with(names.DEFENSES, incomplete)


def attacks(incomplete: str) -> list[str]:
    """Return names for `--attack`."""
    return _starting_with(names.ATTACKS, incomplete)


def recipes(incomplete: str) -> list[str]:
    """Return names for `--recipe`."""
    return _starting_with((*names.RECIPES, *names.RECIPE_FAMILIES), incomplete)


def tables(incomplete: str) -> list[str]:
    """Return names of tables of the paper."""
    return _starting_with(names.TABLES, incomplete)


def board_tracks(incomplete: str) -> list[str]:
    """Return names of tracks of the board."""
    from dent.board.tracks import tracks as known

    return _starting_with(known(), incomplete)


def scales(incomplete: str) -> list[str]:
    """Return names for `--scale`."""
    return _starting_with(names.SCALES, incomplete)


def catalogues(incomplete: str) -> list[str]:
    """Return names for `--source` of `dent models`."""
    return _starting_with(names.CATALOGUES, incomplete)


def _starting_with(all_names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in all_names if name.startswith(incomplete)]
