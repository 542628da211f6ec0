"""`dent.defenses` under its former name."""

from dent.defenses import *  # noqa: F403
