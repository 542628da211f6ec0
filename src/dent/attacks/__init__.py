"""Attacks on static and dynamic defenses, under a threat model.

from dent import ThreatModel
from dent.attacks import make

result = make("apgd-ce")(defense, images, labels, ThreatModel("linf", "8/255"), seed=0)
"""

from typing import TYPE_CHECKING

from dent.support.lazy import lazy

if TYPE_CHECKING:
    from dent.attacks.autoattack.attack import AutoAttack
    from dent.attacks.base import Attack, AttackError, AttackResult, Outcome
    from dent.attacks.foreign import Foreign, from_adv_lib, from_foolbox
    from dent.attacks.pgd import PGD
    from dent.attacks.protocol import Defense, DynamicDefense, answer, is_batch_dependent
    from dent.attacks.querier import Querier, Queries
    from dent.attacks.registry import from_factory, make, make_from, names, settings_of

__all__ = [
    "PGD",
    "Attack",
    "AttackError",
    "AttackResult",
    "AutoAttack",
    "Defense",
    "DynamicDefense",
    "Foreign",
    "Outcome",
    "Querier",
    "Queries",
    "answer",
    "from_adv_lib",
    "from_factory",
    "from_foolbox",
    "is_batch_dependent",
    "make",
    "make_from",
    "names",
    "settings_of",
]

_MODULES = {
    "dent.attacks.autoattack.attack": ("AutoAttack",),
    "dent.attacks.base": (
        "Attack",
        "AttackError",
        "AttackResult",
        "Outcome",
    ),
    "dent.attacks.foreign": (
        "Foreign",
        "from_adv_lib",
        "from_foolbox",
    ),
    "dent.attacks.pgd": ("PGD",),
    "dent.attacks.protocol": (
        "Defense",
        "DynamicDefense",
        "answer",
        "is_batch_dependent",
    ),
    "dent.attacks.querier": (
        "Querier",
        "Queries",
    ),
    "dent.attacks.registry": (
        "from_factory",
        "make",
        "make_from",
        "names",
        "settings_of",
    ),
}
"""The module of each public name."""

if not TYPE_CHECKING:  # with __getattr__, a type checker would accept any name
    __getattr__, __dir__ = lazy(__name__, _MODULES)
