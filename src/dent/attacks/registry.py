"""Attacks by name, for configurations and the command line."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from dent.attacks.adaptive import ADAPTIVE
from dent.attacks.autoattack import AutoAttack
from dent.attacks.parts import PARTS, SETS
from dent.attacks.pgd import PGD
from dent.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from dent.attacks.base import Attack

_FACTORIES: dict[str, Callable[..., Attack]] = {
    "pgd": PGD,
    # The paper's ImageNet attack (section 4.3): 30 iterations, step size 0.1, five random
    # starts. It gives no unit; of eps is the reading that moves: a step of 0.1 of the pixels'
    # range would be six times its eps of 4/255, and visit corners of the ball alone.
    "pgd-imagenet": partial(PGD, iterations=30, step=0.1, restarts=5, name="pgd-imagenet"),
    **{name: partial(AutoAttack, name) for name in (*PARTS, *SETS)},
    **ADAPTIVE,
}


def names() -> tuple[str, ...]:
    """The names that `make` knows, in alphabetical order."""
    return tuple(sorted(_FACTORIES))


def make(name: str, **settings: Any) -> Attack:
    """Make an attack by its name.

    Args:
        name: One of `names()`.
        **settings: Hyper-parameters of that attack's class; None leaves the default.

    Raises:
        UnknownNameError: If there is no such attack; the message suggests one.
        ConfigError: If the attack has no such setting, or a value is out of range.
    """
    if name not in _FACTORIES:
        raise UnknownNameError(
            f"no attack is called {name!r}{_suggest(name, names())}; there are {', '.join(names())}"
        )
    factory = _FACTORIES[name]
    known = tuple(key for key in inspect.signature(factory).parameters if key != "name")
    for key in settings:
        if key not in known:
            raise ConfigError(
                f"{name} has no setting {key!r}{_suggest(key, known)}; it has {', '.join(known)}"
            )
    return factory(**{key: value for key, value in settings.items() if value is not None})


def _suggest(name: str, options: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name.lower(), options, n=1)
    return f", did you mean {near[0]!r}?" if near else ""
