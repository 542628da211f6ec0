"""Check that a defense is what its name says. Tables show the name, and users choose it freely."""

from typing import Final

from dent.defenses import registry
from dent.evaluation.records.spec import STATIC, DefenseSpec
from dent.kinds import recorded_kind

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
