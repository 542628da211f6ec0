"""Train classifiers (nominal, adversarial, TRADES, N-FGSM), and resume training exactly."""

from dent.training.card import Measured, check_measured, write_card
from dent.training.engine import accelerator
from dent.training.loop import CatastrophicOverfittingWarning, TrainingProgress
from dent.training.recipe import Recipe
from dent.training.recipes import RECIPES, named
from dent.training.state import InexactResumeWarning
from dent.training.train import TrainingResult, train

__all__ = [
    "RECIPES",
    "CatastrophicOverfittingWarning",
    "InexactResumeWarning",
    "Measured",
    "Recipe",
    "TrainingProgress",
    "TrainingResult",
    "accelerator",
    "check_measured",
    "named",
    "train",
    "write_card",
]
