"""Attacks by name, for configurations and the command line."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

from dent.attacks.adaptive import ADAPTIVE
from dent.attacks.autoattack.attack import AutoAttack, QueryProtocol
from dent.attacks.autoattack.parts import PARTS, SETS
from dent.attacks.base import Attack
from dent.attacks.pgd import PGD
from dent.errors import ConfigError, UnknownNameError
from dent.names import full_attack, unknown_attack
from dent.support.factories import call_factory, type_name
from dent.support.suggest import closest

_FACTORIES: dict[str, Callable[..., Attack]] = {
    "pgd": PGD,
    # The paper's ImageNet attack (section 4.3): 30 iterations, step size 0.1, five random
    # starts. The paper gives no unit, so we take the step as a share of eps. A step of 0.1 of the
    # pixel range would be six times its eps of 4/255, and would only visit corners of the ball.
    "pgd-imagenet": partial(PGD, iterations=30, step=0.1, restarts=5, name="pgd-imagenet"),
    **{name: partial(AutoAttack, name) for name in (*PARTS, *SETS)},
    **ADAPTIVE,
}


def names() -> tuple[str, ...]:
    """Return the names that `make` knows, in alphabetical order."""
    return tuple(sorted(_FACTORIES))


def make(name: str, /, **settings: Any) -> Attack:
    """Make an attack by its name.

    Args:
        name: One of `names()`, or an alias such as `autoattack` or `aa`.
        **settings: Hyper-parameters of that attack's class, and `name`, its name in results; None
            leaves the default.

    Raises:
        UnknownNameError: If there is no such attack; the message suggests one.
        ConfigError: If the attack has no such setting, or a value is out of range.
    """
    name = _full(name)
    accepted = settings_of(name)
    for key in settings:
        if key not in (*accepted, "name"):
            raise ConfigError(
                f"{name} has no setting {key!r}.{_suggest(key, accepted)} Its settings are "
                f"{', '.join(accepted)}"
            )
    return _FACTORIES[name](**{key: value for key, value in settings.items() if value is not None})


def settings_of(name: str) -> tuple[str, ...]:
    """Return the settings that `make` takes for an attack.

    Raises:
        UnknownNameError: If there is no such attack; the message suggests one.
    """
    name = _full(name)
    if name not in _FACTORIES:
        raise UnknownNameError(unknown_attack(name, names()))
    return _parameters_of(_FACTORIES[name])


@cache
def _parameters_of(factory: Callable[..., Attack]) -> tuple[str, ...]:
    return tuple(key for key in inspect.signature(factory).parameters if key != "name")


def make_from(
    text: str, *, iterations: int | None = None, protocol: QueryProtocol = "frozen"
) -> Attack:
    """Make an attack from command-line text: `pgd`, or `pgd:iterations=30,restarts=5`.

    The attack is named by the text, so that one attack can run with several settings. An alias is
    replaced by the full name (`aa` by `standard`).

    Args:
        text: A name, optionally with a colon and settings, which are JSON values or plain words.
        iterations: Iterations of the attack, if the text does not set them.
        protocol: Protocol of AutoAttack's attacks, if the text does not set it.

    Raises:
        UnknownNameError: If there is no such attack.
        ConfigError: If the text is malformed, the attack has no such setting, or a value is out
            of range.
    """
    typed_name, settings = _parse(text)
    name = _full(typed_name)
    accepted = settings_of(name)
    if "name" in settings:
        raise ConfigError(f"{text}: the whole text is the attack's name: leave out name=")
    if "iterations" not in settings:
        settings["iterations"] = iterations
    if "protocol" in accepted:
        settings.setdefault("protocol", protocol)
    elif protocol != "frozen":
        raise ConfigError(
            f"protocol={protocol!r} is AutoAttack's own; {name} has none: leave it out"
        )
    attack = make(name, **{key: value for key, value in settings.items() if value is not None})
    return replace(attack, name=name + "".join(text.split()).removeprefix(typed_name))


def from_factory(spec: str) -> Attack:
    """Import a user's factory and call it; see `dent.support.factories.call_factory`.

    Args:
        spec: `package.module:factory`, which becomes the name of the attack. The factory is
            called without arguments and returns an `Attack`. It may be a subclass of `Attack`.

    Raises:
        UnknownNameError: There is no such module or factory.
        UnsupportedModelError: The factory raised.
        ConfigError: It returned something else.
    """
    attack = call_factory(
        spec, kind="makes an attack", called="without arguments: give every argument a default"
    )
    if not isinstance(attack, Attack):
        raise ConfigError(
            f"{spec} must return an attack (dent.attacks.Attack), got {type_name(attack)}"
        )
    return replace(attack, name=spec)


def _full(name: object) -> str:
    """Return the full name for an alias, and any other name unchanged."""
    if not isinstance(name, str):
        raise ConfigError(
            f"an attack is made by its name, such as 'apgd-ce', got {type_name(name)}: an attack "
            "that is made already needs no name"
        )
    return full_attack(name)


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(text, str):
        raise ConfigError(f"an attack is written NAME:SETTING=VALUE, got {type_name(text)}")
    name, colon, listed = "".join(text.split()).partition(":")
    settings: dict[str, Any] = {}
    for item in listed.split(",") if colon else ():
        key, equals, value = item.partition("=")
        if not (key and equals and value):
            raise ConfigError(
                f"an attack is written NAME or NAME:SETTING=VALUE,SETTING=VALUE, got {text!r}"
            )
        if key in settings:
            raise ConfigError(f"{text}: {key} is set twice")
        try:
            settings[key] = json.loads(value)
        except (ValueError, RecursionError):
            settings[key] = value
    return name, settings


def _suggest(name: str, options: tuple[str, ...]) -> str:
    near = closest(name, options)
    return f" Did you mean {near!r}?" if near else ""
