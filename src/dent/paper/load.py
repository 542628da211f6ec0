"""Load the spec files that come with the package."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from dent.errors import ConfigError
from dent.names import TABLES, check_scale, check_table
from dent.paper.scales import Role, Scale
from dent.paper.spec import Strict, Table

_HERE: Final = files("dent.paper")
_Kind = TypeVar("_Kind", bound=Strict)


def table_names() -> tuple[str, ...]:
    """Return the names of all tables and figures, in the paper's order."""
    return TABLES


def scale_names() -> tuple[str, ...]:
    """Return the names of all scales."""
    return tuple(_read("scales.toml"))


@cache
def load_table(name: str) -> Table:
    """Return a table or figure by name.

    Raises:
        UnknownNameError: No table or figure has this name.
        ConfigError: Its spec file has an unknown key, or contradicts itself.
    """
    check_table(name)
    return read_spec(Table, f"tables/{name}.toml", {"id": name, **_read(f"tables/{name}.toml")})


@cache
def load_scale(name: str) -> Scale:
    """Return a scale by name.

    Raises:
        UnknownNameError: No scale has this name.
        ConfigError: scales.toml has an unknown key.
    """
    check_scale(name)
    return read_spec(Scale, "scales.toml", {"id": name, **_read("scales.toml")[name]})


@cache
def load_roles() -> dict[str, Role]:
    """Return the models of the paper, by the names that the tables use.

    Raises:
        ConfigError: models.toml has an unknown key.
    """
    roles = _read("models.toml")
    return {name: read_spec(Role, f"models.toml, {name}", roles[name]) for name in roles}


def read_spec(kind: type[_Kind], where: str, values: dict[str, Any]) -> _Kind:
    """Validate the contents of a spec file.

    Args:
        kind: The model to validate against.
        where: Name of the file, for error messages.
        values: The contents.

    Raises:
        ConfigError: A key is unknown, a value is out of range, or two values contradict each other.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        location = ".".join(map(str, problem["loc"]))
        raise ConfigError(
            f"{where}: {location + ': ' if location else ''}{problem['msg']}"
        ) from error


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(_HERE.joinpath(name).read_text(encoding="utf-8"))
