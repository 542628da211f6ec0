"""Whole numbers as a short text of ranges: `0-511,600,602`."""

import re
from collections.abc import Iterable
from typing import Final

from dent.errors import ConfigError

_LARGEST: Final = 10**9
_PART: Final = re.compile("([0-9]{1,10})(?:-([0-9]{1,10}))?")


def written(numbers: Iterable[int]) -> str:
    """Return numbers as ranges, sorted and without duplicates.

    Args:
        numbers: Numbers of at least 0.
    """
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def read(text: str) -> tuple[int, ...]:
    """Return the numbers of ranges, in the order of the text.

    Raises:
        ConfigError: The text is not such ranges, or a range or number is too large.
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= _LARGEST or last - first > _LARGEST // 100:
            raise ConfigError(f"expected numbers and ranges such as 0-511,600, got {part!r}")
        numbers += range(first, last + 1)
    return tuple(numbers)
