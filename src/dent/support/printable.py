"""Make untrusted text safe to print.

A terminal interprets some characters as commands (move up, clear, set the title), and
right-to-left text can look like other text. Names in records can hold both.
"""

import re
from typing import Final

_ORDERS: Final = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f"  # C0 less tab and newline, and delete
    "\x80-\x9f"  # C1, among them the one-character ESC [
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls
    "\u2028\u2029"  # line and paragraph separators
    "\ud800-\udfff"  # halves of characters, which no file takes
    "]"
)
_INSTEAD: Final = "\ufffd"


def printable(text: str) -> str:
    """Replace C0 (but tab and newline), C1 and bidirectional controls by the replacement sign."""
    return _ORDERS.sub(_INSTEAD, text)


def one_line(text: object) -> str:
    """The same on one line, for a name within a sentence: it can begin no line of its own."""
    return printable(str(text).replace("\n", _INSTEAD).replace("\t", " "))
