"""Attacks on the adaptation of a defense: by its gradient, its models, or other members."""

from typing import TYPE_CHECKING

from dent.support.lazy import lazy

if TYPE_CHECKING:
    from dent.attacks.adaptive.adaptive_apgd import AdaptiveAPGD
    from dent.attacks.adaptive.among import Among
    from dent.attacks.adaptive.capabilities import (
        NOT_AVAILABLE,
        SupportsDifferentiableAdapt,
        SupportsSteps,
        SupportsUnwrap,
        Unavailable,
        is_unavailable,
    )
    from dent.attacks.adaptive.catalogue import ADAPTIVE
    from dent.attacks.adaptive.certificate import Certificate, certificate
    from dent.attacks.adaptive.collateral import Collateral
    from dent.attacks.adaptive.ladder import RUNGS, STAND_INS, Rung, RungName
    from dent.attacks.adaptive.majority import Majority
    from dent.attacks.adaptive.model_space import ModelSpace
    from dent.attacks.adaptive.rays import RayS

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
    "is_unavailable",
]

_MODULES = {
    "dent.attacks.adaptive.adaptive_apgd": ("AdaptiveAPGD",),
    "dent.attacks.adaptive.among": ("Among",),
    "dent.attacks.adaptive.capabilities": (
        "NOT_AVAILABLE",
        "SupportsDifferentiableAdapt",
        "SupportsSteps",
        "SupportsUnwrap",
        "Unavailable",
        "is_unavailable",
    ),
    "dent.attacks.adaptive.catalogue": ("ADAPTIVE",),
    "dent.attacks.adaptive.certificate": (
        "Certificate",
        "certificate",
    ),
    "dent.attacks.adaptive.collateral": ("Collateral",),
    "dent.attacks.adaptive.ladder": (
        "RUNGS",
        "Rung",
        "RungName",
        "STAND_INS",
    ),
    "dent.attacks.adaptive.majority": ("Majority",),
    "dent.attacks.adaptive.model_space": ("ModelSpace",),
    "dent.attacks.adaptive.rays": ("RayS",),
}
"""The module of each public name."""

if not TYPE_CHECKING:  # with __getattr__, a type checker would accept any name
    __getattr__, __dir__ = lazy(__name__, _MODULES)
