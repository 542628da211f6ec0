"""Make untrusted text safe to print.

A terminal interprets some characters as commands (move up, clear, set the title), and
right-to-left text can look like other text. Names in records can contain both.
"""

import re
from typing import Final

_ORDERS: Final = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f"  # C0 except tab and newline, and delete
    "\x80-\x9f"  # C1, including the one-character ESC [
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls
    "\u2028\u2029"  # line and paragraph separators
    "\ud800-\udfff"  # surrogates, which cannot be encoded
    "]"
)
_INSTEAD: Final = "\ufffd"


def printable(text: str) -> str:
    """Replace control characters, except tab and newline, with the replacement character.

    These are C0, C1 and bidirectional controls, line and paragraph separators, and surrogates.
    """
    return _ORDERS.sub(_INSTEAD, text)


def encodable(text: str) -> str:
    r"""Write surrogates, which no UTF-8 file can hold, as escapes such as `\udcff`.

    Python puts them into the name of a file that is not valid UTF-8.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def one_line(text: object) -> str:
    """Return `printable` text on one line, so that a name in a sentence cannot start a new line."""
    return printable(str(text).replace("\n", _INSTEAD).replace("\t", " "))
