"""Former name of `dent.defenses`."""

from dent.defenses import *  # noqa: F403
