"""Numbers with their nouns and verbs, and lists, for messages."""

from collections.abc import Iterable
from typing import Final

_HISSING: Final = ("s", "sh", "ch", "x", "z")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: `1 batch`, `3 batches`, `0 queries`.

    Args:
        number: The number.
        noun: The singular; only the last of several words changes.
        plural: The plural, if it does not follow the rules of `plural_of`.
    """
    return f"{number} {noun if number == 1 else plural or plural_of(noun)}"


def plural_of(noun: str) -> str:
    """Return the regular plural of a noun: `batches`, `queries`, `runs`."""
    if noun.endswith(_HISSING):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def agreeing(number: int, verb: str) -> str:
    """Return the form of a verb after a number of subjects: `are` or `is`, `stand` or `stands`.

    Args:
        number: The number of subjects.
        verb: The plural form.
    """
    return _OF_ONE.get(verb, f"{verb}s") if number == 1 else verb


def listed(items: Iterable[object], shown: int) -> str:
    """Return the first items, and how many follow: `a, b`, `a, b, and 3 more`, `a and 4 more`.

    Args:
        items: The items; any number of them.
        shown: Number of items to write out, at least 1.
    """
    return (" " if shown == 1 else ", ").join(first_few(items, shown))


def first_few(items: Iterable[object], shown: int) -> list[str]:
    """Return the first items as texts, then `and 3 more` if 3 follow.

    Args:
        items: The items; any number of them.
        shown: Number of items to return, at least 1.
    """
    texts = [str(item) for item in items]
    more = len(texts) - shown
    return [*texts[:shown], *([f"and {more} more"] if more > 0 else [])]


_OF_ONE: Final = {"are": "is", "were": "was", "have": "has", "do": "does"}
