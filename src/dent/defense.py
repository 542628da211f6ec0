"""Former name of `dent.defenses.dent`."""

from dent.defenses.dent import Dent

__all__ = ["Dent"]
