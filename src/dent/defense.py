"""`dent.defenses.dent` under its former name."""

from dent.defenses.dent import Dent

__all__ = ["Dent"]
