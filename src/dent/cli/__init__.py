"""The command line, `dent`: its commands, what they print, and what they share."""

from dent.cli.app import main

__all__ = ["main"]
