"""Other defenses to compare with, small and on the protocol of Dent, and all defenses by name.

    from dent.reference import make, names

    defense = make("hedge", model)
    logits = defense(images)

Each is a reference: written to be read and checked against its paper, not to be fast.
"""

from dent.reference.anti_adversary import AntiAdversary
from dent.reference.base import ReferenceDefense
from dent.reference.configuration import load_config
from dent.reference.hedge import Hedge
from dent.reference.perturbation import Perturbation
from dent.reference.registry import CONFIGS, KINDS, describe, make, names
from dent.reference.statistics_prior import StatisticsPrior
from dent.reference.tent_online import TENT, TentOnline, TentState

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
