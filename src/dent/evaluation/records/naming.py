"""Check that defenses and attacks are what their names say.

Tables show the names, and users choose them freely.
"""

from typing import Final

from dent import attacks
from dent.defenses import registry
from dent.errors import DentError
from dent.evaluation.records.spec import STATIC, AttackSpec, DefenseSpec
from dent.kinds import recorded_kind
from dent.names import full_attack
from dent.threat import Norm

_DENT: Final = recorded_kind("dent")


def contradiction(spec: DefenseSpec) -> str | None:
    """Return an error message if a defense has the name of another one; None if it may have it.

    A known name (`dent.defenses.names()`) is reserved for the defense of that name, with two
    exceptions. A `Dent` with custom settings may have the name of a configuration of `Dent`; the
    diagnostic `not as named` reports it. `static` is also the name of a static model of any class
    that is not a known defense.
    """
    if spec.name not in registry.names():
        return None
    actual = _found(spec)
    if actual in (None, spec.name):
        return None
    return (
        f"the defense called {spec.name!r} is {actual}: give it a name that is not another "
        f"defense's, or evaluate {spec.name!r}"
    )


def attack_contradiction(spec: AttackSpec, norm: Norm) -> str | None:
    """Return an error message if an attack has the name of another one; None if it may have it.

    The names of `dent.attacks.names()` are reserved for these attacks. A name with settings, such
    as `pgd:iterations=30`, is reserved for the attack with these settings.

    Args:
        spec: The attack.
        norm: Norm of the threat model.
    """
    name, colon, text = "".join(spec.name.split()).partition(":")
    items = [item.partition("=") for item in text.split(",")] if colon else []
    if full_attack(name) not in attacks.names() or not all(equals for _, equals, _ in items):
        return None  # a name of its own, or `module:factory`
    if spec.attack is None and name == spec.kind.rpartition(".")[2].lower():
        return None  # the name of its own class, which attacks have by default
    try:
        named = attacks.make_from(spec.name)
    except DentError:
        return None  # the name of settings that this version does not know
    settings = named.settings(norm)
    unlike = [key for key, _, _ in items if spec.settings.get(key) != settings.get(key)]
    if spec.attack == named.registered and not unlike:
        return None
    actual = spec.attack or spec.kind
    if unlike:
        actual += f" with {', '.join(f'{key}={spec.settings.get(key)}' for key in unlike)}"
    return f"the attack called {spec.name!r} is {actual}: give it a name that says what it is"


def is_as_named(spec: DefenseSpec) -> bool:
    """Return whether a defense with the name of a known configuration has its settings."""
    if spec.name not in registry.CONFIGS or spec.kind != _DENT:
        return True
    return spec.config.get("name") == spec.name


def _found(spec: DefenseSpec) -> str | None:
    """Return the known name of a defense, or else what it is; None if it may have any name."""
    for name, kind in registry.KINDS.items():
        if spec.kind == kind:
            return name
    if spec.kind != _DENT:
        return None if spec.name == STATIC else spec.kind
    settings = spec.config.get("settings")
    for name, config in registry.CONFIGS.items():
        if settings == config.to_dict():
            return name
    # A Dent with custom settings may be named after a configuration, but not `static` or a class.
    return "another configuration" if spec.name in (STATIC, *registry.KINDS) else None
