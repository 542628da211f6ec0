"""Defenses as text in the spec files: a preset, and the fields that differ from it.

`dent steps=10 statistics=test`, `dent-nominal smoothing.learn=false`, `dent smoothing=none`.
"""

import json
from typing import Any, Final

from dent.config import DentConfig
from dent.defenses import CONFIGS
from dent.errors import ConfigError

_NEAREST: Final = ("dent", "dent+", "dent-nominal")
_GONE: Final = "none"


def parse_defense(text: str) -> DentConfig:
    """Read a defense: the name of a preset (`dent.defenses.CONFIGS`), then `field=value` words.

    Values are JSON or plain words, and `none` is null. A dot names a field of a field, as in
    `smoothing.learn`.

    Raises:
        ConfigError: The preset or a field is unknown, a word has another form, or the
            configuration is invalid.
    """
    name, *words = text.split()
    if name not in CONFIGS:
        raise ConfigError(f"defense {text!r}: no preset {name!r}, only {', '.join(CONFIGS)}")
    fields = CONFIGS[name].to_dict()
    for word in words:
        key, equals, value = word.partition("=")
        outer, dot, inner = key.partition(".")
        if not (equals and value):
            raise ConfigError(f"defense {text!r}: expected FIELD=VALUE, got {word!r}")
        if dot and not isinstance(fields.get(outer), dict):
            raise ConfigError(f"defense {text!r}: {name} has no {outer}, so no {key}")
        place = fields[outer] if dot else fields
        place[inner if dot else key] = _value(value)
    try:
        return DentConfig.from_dict(fields)
    except ConfigError as error:
        raise ConfigError(f"defense {text!r}: {error}") from error


def defense_name(config: DentConfig) -> str:
    """Return a unique name of a configuration, fit for a file name.

    A preset has its own name, such as `dent+`. Another configuration has the name of the nearest
    preset and the changes to it, such as `dent_steps-10_statistics-test`.
    """
    for name, preset in CONFIGS.items():
        if preset == config:
            return name
    flat = _flat(config)
    changes = {name: _changes(_flat(CONFIGS[name]), flat) for name in _NEAREST}
    # A name that takes a part (such as smoothing) away from a preset is hard to understand, so
    # removing a part counts as more than any number of changes.
    nearest = min(_NEAREST, key=lambda name: (_GONE in changes[name].values(), len(changes[name])))
    return "_".join([nearest, *(f"{key}-{value}" for key, value in changes[nearest].items())])


def _flat(config: DentConfig) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.to_dict().items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": _text(item) for inner, item in value.items()}
        else:
            flat[key] = _text(value)
    return flat


def _changes(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    removed = {key.partition(".")[0]: _GONE for key in before.keys() - after.keys() if "." in key}
    return removed | {
        key: value
        for key, value in after.items()
        if before.get(key) != value and key not in removed
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value).replace(" ", "")


def _value(text: str) -> Any:
    if text == "none":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
