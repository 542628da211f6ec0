"""Other defenses to compare with, small and on the protocol of Dent, and all defenses by name.

    from dent.defenses import make, names

    defense = make("hedge", model)
    logits = defense(images)

Each is a reference: written to be read and checked against its paper, not to be fast.
"""

from dent.defenses.anti_adversary import AntiAdversary
from dent.defenses.base import ReferenceDefense
from dent.defenses.hedge import Hedge
from dent.defenses.perturbation import Perturbation
from dent.defenses.registry import CONFIGS, KINDS, describe, load_config, make, names
from dent.defenses.statistics_prior import StatisticsPrior
from dent.defenses.tent_online import TENT, TentOnline, TentState

__all__ = [
    "CONFIGS",
    "KINDS",
    "TENT",
    "AntiAdversary",
    "Hedge",
    "Perturbation",
    "ReferenceDefense",
    "StatisticsPrior",
    "TentOnline",
    "TentState",
    "describe",
    "load_config",
    "make",
    "names",
]
