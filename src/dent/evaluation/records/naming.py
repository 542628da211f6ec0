"""Check that a defense is what its name says: tables show the name, and it is free text."""

from typing import Final

from dent import defenses as reference
from dent.evaluation.records.spec import STATIC, DefenseSpec
from dent.kinds import recorded_kind

_DENT: Final = recorded_kind("dent")


def contradiction(spec: DefenseSpec) -> str | None:
    """Say what a defense is if it has the name of another one; None if it may have its name.

    A known name (`dent.defenses.names()`) is for the defense of that name. Another configuration
    of `Dent` under one is told apart by a diagnostic (`not as named`); another known defense under
    one is refused. `static` is also the name of the model itself, whatever it is.
    """
    if spec.name not in reference.names():
        return None
    actual = _found(spec)
    if actual in (None, spec.name):
        return None
    return (
        f"the defense called {spec.name!r} is {actual}: give it a name that is not another "
        f"defense's, or evaluate {spec.name!r}"
    )


def is_as_named(spec: DefenseSpec) -> bool:
    """Whether a defense under a known name has the settings that belong to it."""
    if spec.name not in reference.CONFIGS or spec.kind != _DENT:
        return True
    return spec.config.get("name") == spec.name


def _found(spec: DefenseSpec) -> str | None:
    """The known defense that a record describes; None for one of no known name."""
    for name, kind in reference.KINDS.items():
        if spec.kind == kind:
            return name
    if spec.kind != _DENT:
        return None if spec.name == STATIC else spec.kind
    settings = spec.config.get("settings")
    for name, config in reference.CONFIGS.items():
        if settings == config.to_dict():
            return name
    # Of its own settings: it may be called after what it was made from, but never static.
    return "another configuration" if spec.name in (STATIC, *reference.KINDS) else None
