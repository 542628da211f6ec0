"""AutoAttack as published, and the same attacks on a batch that stays whole."""

from dent.attacks.autoattack.attack import AutoAttack

__all__ = ["AutoAttack"]
