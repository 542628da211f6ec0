"""Attacks that know that a defense adapts: through its gradient, its models, and its company."""

from dent.attacks.adaptive.capabilities import (
    SupportsDifferentiableAdapt,
    SupportsSteps,
    SupportsUnwrap,
    Unavailable,
)
from dent.attacks.adaptive.catalogue import ADAPTIVE
from dent.attacks.adaptive.certificate import Certificate, certificate
from dent.attacks.adaptive.collateral import Collateral
from dent.attacks.adaptive.company import Among
from dent.attacks.adaptive.gradients import RUNGS, STAND_INS, Rung, RungName
from dent.attacks.adaptive.model_space import ModelSpace
from dent.attacks.adaptive.rays import RayS
from dent.attacks.adaptive.repetition import Majority
from dent.attacks.adaptive.through import NOT_AVAILABLE, AdaptiveAPGD

__all__ = [
    "ADAPTIVE",
    "NOT_AVAILABLE",
    "RUNGS",
    "STAND_INS",
    "AdaptiveAPGD",
    "Among",
    "Certificate",
    "Collateral",
    "Majority",
    "ModelSpace",
    "RayS",
    "Rung",
    "RungName",
    "SupportsDifferentiableAdapt",
    "SupportsSteps",
    "SupportsUnwrap",
    "Unavailable",
    "certificate",
]
