"""All defenses by name: `Dent`, and other defenses to compare it with.

    from dent.defenses import make, names

    defense = make("hedge", model)
    logits = defense(images)

The others are reference implementations: written to be read and checked against their papers, not
to be fast.
"""

from dent.defenses.anti_adversary import AntiAdversary
from dent.defenses.base import ReferenceDefense
from dent.defenses.dent import Dent
from dent.defenses.et3 import ET3
from dent.defenses.hedge import Hedge, fixed_hedge
from dent.defenses.mean_sparse import MeanSparse, Sparsity
from dent.defenses.med_bn import MedBN
from dent.defenses.perturbation import Perturbation
from dent.defenses.purifier import Denoiser, Purifier
from dent.defenses.registry import CONFIGS, KINDS, describe, load_config, make, names
from dent.defenses.statistics_prior import StatisticsPrior
from dent.defenses.tent_online import TENT, TentOnline, TentState
from dent.defenses.tta import TestTimeAdaptation

__all__ = [
    "CONFIGS",
    "ET3",
    "KINDS",
    "TENT",
    "AntiAdversary",
    "Denoiser",
    "Dent",
    "Hedge",
    "MeanSparse",
    "MedBN",
    "Perturbation",
    "Purifier",
    "ReferenceDefense",
    "Sparsity",
    "StatisticsPrior",
    "TentOnline",
    "TentState",
    "TestTimeAdaptation",
    "describe",
    "fixed_hedge",
    "load_config",
    "make",
    "names",
]
