"""Convert specifications of schema 1 to schema 2, with one pure function from JSON to JSON.

Schema 1 described an attack by its class (`kind`) and its full configuration (`config`).
Schema 2 records the name and the settings with which `dent.attacks.make` makes it.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from dent.kinds import recorded_kind

_SETS: Final = {
    ("apgd-ce", "apgd-t", "fab-t", "square"): "standard",
    ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"): "plus",
}
_ENVIRONMENT: Final = "pyautoattack"
_Described = tuple[str | None, dict[str, Any]]


def upgraded(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a specification of schema 1 in schema 2.

    Parts that schema 1 would not have written are left unchanged. The reader refuses them later.

    Args:
        spec: Plain JSON values; not modified.
    """
    attacks = spec.get("attacks")
    changed = [_attack(attack) for attack in attacks] if isinstance(attacks, list) else attacks
    return spec | {"schema_version": 2, "attacks": changed}


def _attack(old: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(old.get("config"), dict):
        return old
    config = dict(old["config"])
    environment = config.pop(_ENVIRONMENT, None)
    describe = _BY_KIND.get(str(old.get("kind")))
    try:
        name, settings = (None, config) if describe is None else describe(config)
    except (KeyError, TypeError, AttributeError):  # not as schema 1 wrote it
        name, settings = None, config
    new = {key: value for key, value in old.items() if key != "config"}
    versions = {} if environment is None else {_ENVIRONMENT: environment}
    return new | {"attack": name, "settings": settings, "versions": versions}


def _named(name: str) -> Callable[[dict[str, Any]], _Described]:
    return lambda config: (name, config)


def _adaptive_apgd(config: dict[str, Any]) -> _Described:
    settings = {key: value for key, value in config.items() if key != "rung"}
    return f"adaptive-{config['rung']}", settings


def _model_space(config: dict[str, Any]) -> _Described:
    settings = {key: value for key, value in config.items() if key != "ensemble"}
    return str(config["ensemble"]), settings


def _autoattack(config: dict[str, Any]) -> _Described:
    """Convert the budget of each part in schema 1 to the settings of schema 2, with defaults."""
    parts = config["parts"]
    names = tuple(part["name"] for part in parts)
    alone = len(parts) == 1
    settings = {key: value for key, value in config.items() if key != "parts"} | {
        "iterations": common(p["iterations"] for p in parts if alone or p["name"] != "square"),
        "restarts": parts[0]["restarts"] if alone else None,
        "targets": common(p["targets"] for p in parts if "targets" in p),
        "rho": common(p["rho"] for p in parts if "rho" in p),
        "square_iterations": None
        if alone
        else common(p["iterations"] for p in parts if p["name"] == "square"),
    }
    return (names[0] if alone else _SETS[names]), settings


def common(values: Iterable[Any]) -> Any:
    """Return the value that all values share; None if there are no values or they differ."""
    items = list(values)
    return items[0] if items and all(value == items[0] for value in items) else None


_BY_KIND: Final[dict[str, Callable[[dict[str, Any]], _Described]]] = {
    recorded_kind("pgd"): _named("pgd"),
    recorded_kind("autoattack"): _autoattack,
    recorded_kind("adaptive-apgd"): _adaptive_apgd,
    recorded_kind("model-space"): _model_space,
    recorded_kind("surrogates"): _named("surrogates"),
    recorded_kind("collateral"): _named("collateral"),
    recorded_kind("rays"): _named("rays"),
}
