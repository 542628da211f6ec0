"""Singular and plural forms of nouns and verbs, for messages."""

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


_OF_ONE: Final = {"are": "is", "were": "was", "have": "has", "do": "does"}
