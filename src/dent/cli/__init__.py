"""The command line: `dent demo | evaluate | data | models`."""

from dent.cli.app import main

__all__ = ["main"]
