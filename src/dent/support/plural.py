"""A number with its noun."""

from typing import Final

_HISSING: Final = ("s", "sh", "ch", "x", "z")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 batch`, `3 batches`, `0 queries`.

    Args:
        number: How many.
        noun: One of them; of several words the last one changes.
        plural: Several of them, where a rule of English does not say it.
    """
    return f"{number} {noun if number == 1 else plural or plural_of(noun)}"


def plural_of(noun: str) -> str:
    """Several of what a noun names: `batches`, `queries`, `runs`."""
    if noun.endswith(_HISSING):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def agreeing(number: int, verb: str) -> str:
    """A verb that stands behind so many: `are` and `is`, `stand` and `stands`.

    Args:
        number: How many subjects.
        verb: The plural form.
    """
    return _OF_ONE.get(verb, f"{verb}s") if number == 1 else verb


_OF_ONE: Final = {"are": "is", "were": "was", "have": "has", "do": "does"}
