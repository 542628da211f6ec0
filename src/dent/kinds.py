"""Names of this package's classes in records, which stay the same when code is moved.

Resuming, verification and verdicts compare these names, so a name in this table never changes and
is never removed. It was the class's path when it was first recorded, and is now only a name. When a
class is renamed or moved, change only its `where`.
"""

import sys
from pkgutil import resolve_name
from typing import Final, NamedTuple


class Kind(NamedTuple):
    """A class that records name.

    Attributes:
        recorded: Its name in records, which never changes.
        name: Its short name, for code.
        where: Where the class is defined today, as `module:Class`.
    """

    recorded: str
    name: str
    where: str

    @property
    def loaded(self) -> type | None:
        """The class; None while its module is not imported, so that it can have no object."""
        module, _, name = self.where.partition(":")
        return getattr(sys.modules.get(module), name, None)


KINDS: Final = (
    Kind("dent.attacks.pgd.PGD", "pgd", "dent.attacks.pgd:PGD"),
    Kind(
        "dent.attacks.autoattack.AutoAttack",
        "autoattack",
        "dent.attacks.autoattack.attack:AutoAttack",
    ),
    Kind(
        "dent.attacks.adaptive.through.AdaptiveAPGD",
        "adaptive-apgd",
        "dent.attacks.adaptive.adaptive_apgd:AdaptiveAPGD",
    ),
    Kind(
        "dent.attacks.adaptive.model_space.ModelSpace",
        "model-space",
        "dent.attacks.adaptive.model_space:ModelSpace",
    ),
    Kind(
        "dent.attacks.adaptive.surrogates.Surrogates",
        "surrogates",
        "dent.attacks.adaptive.surrogates:Surrogates",
    ),
    Kind(
        "dent.attacks.adaptive.collateral.Collateral",
        "collateral",
        "dent.attacks.adaptive.collateral:Collateral",
    ),
    Kind("dent.attacks.foreign.Foreign", "foreign", "dent.attacks.foreign:Foreign"),
    Kind("dent.attacks.adaptive.rays.RayS", "rays", "dent.attacks.adaptive.rays:RayS"),
    Kind("dent.defense.Dent", "dent", "dent.defenses.dent:Dent"),
    Kind(
        "dent.reference.tent_online.TentOnline",
        "tent-online",
        "dent.defenses.tent_online:TentOnline",
    ),
    Kind(
        "dent.reference.anti_adversary.AntiAdversary",
        "anti-adversary",
        "dent.defenses.anti_adversary:AntiAdversary",
    ),
    Kind("dent.reference.hedge.Hedge", "hedge", "dent.defenses.hedge:Hedge"),
    Kind(
        "dent.reference.statistics_prior.StatisticsPrior",
        "statistics-prior",
        "dent.defenses.statistics_prior:StatisticsPrior",
    ),
    Kind("dent.defenses.et3.ET3", "et3", "dent.defenses.et3:ET3"),
    Kind(
        "dent.defenses.mean_sparse.MeanSparse",
        "mean-sparse",
        "dent.defenses.mean_sparse:MeanSparse",
    ),
    Kind("dent.defenses.med_bn.MedBN", "med-bn", "dent.defenses.med_bn:MedBN"),
    Kind("dent.defenses.purifier.Purifier", "purifier", "dent.defenses.purifier:Purifier"),
    Kind("dent.models.residual.ResNet", "resnet", "dent.models.residual:ResNet"),
    Kind(
        "dent.models.autoattack_resnet18.ResNet18",
        "resnet18",
        "dent.models.autoattack_resnet18:ResNet18",
    ),
    Kind("dent.models.normalize.Normalize", "normalize", "dent.models.normalize:Normalize"),
    Kind("dent.outputs.Logits", "logits", "dent.outputs:Logits"),
)
"""All classes of this package that records name: attacks, defenses, models and wrappers."""

_RECORDED: Final = {kind.name: kind.recorded for kind in KINDS}


def kind_of(thing: object) -> str:
    """Return the name in records of an object's class; for a user's class, its path."""
    cls = type(thing)
    return _registered(cls) or f"{cls.__module__}.{cls.__qualname__}"


def path_of(thing: object) -> str:
    """Return the same as `kind_of`, written as `module:Class`."""
    cls = type(thing)
    registered = _registered(cls)
    return ":".join(registered.rsplit(".", 1) if registered else (cls.__module__, cls.__qualname__))


def is_registered(thing: object) -> bool:
    """Return whether the class of an object is in the table."""
    return _registered(type(thing)) is not None


def class_of(recorded: str) -> type | None:
    """Import and return the class with a name in records; None if it is not in the table."""
    path = next((kind.where for kind in KINDS if kind.recorded == recorded), None)
    return None if path is None else resolve_name(path)


def recorded_kind(name: str) -> str:
    """Return the name in records of the class with a short name."""
    return _RECORDED[name]


def _registered(cls: type) -> str | None:
    return next((kind.recorded for kind in KINDS if kind.loaded is cls), None)
