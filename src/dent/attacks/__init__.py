"""Attacks on static and dynamic defenses, under a threat model.

from dent import ThreatModel
from dent.attacks import make

result = make("apgd-ce")(defense, images, labels, ThreatModel("linf", "8/255"), seed=0)
"""

from dent.attacks.autoattack import AutoAttack
from dent.attacks.base import Attack, AttackError, AttackResult, Outcome
from dent.attacks.pgd import PGD
from dent.attacks.protocol import Defense, DynamicDefense, answer, is_batch_dependent
from dent.attacks.querier import Querier, Queries
from dent.attacks.registry import make, make_from, names, settings_of

__all__ = [
    "PGD",
    "Attack",
    "AttackError",
    "AttackResult",
    "AutoAttack",
    "Defense",
    "DynamicDefense",
    "Outcome",
    "Querier",
    "Queries",
    "answer",
    "is_batch_dependent",
    "make",
    "make_from",
    "names",
    "settings_of",
]
