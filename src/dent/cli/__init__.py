"""The command line, `dent`: a module for each command, and what they share."""

from dent.cli.app import main

__all__ = ["main"]
