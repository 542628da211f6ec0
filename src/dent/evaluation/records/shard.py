"""Shards: parts of a run that run separately, on any machine, and are merged afterwards."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from dent.errors import ConfigError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Shard:
    """Every `of`-th group of a run's units, from the group `number` on.

    In a run by attack, every shard also makes all probes, because its attacks depend on them.

    Attributes:
        number: The number of this shard, from 1 to `of`.
        of: The number of shards.

    Raises:
        ConfigError: `number` is not from 1 to `of`.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ConfigError(
                f"there is no shard {self.number}/{self.of}: expected I/K with I from 1 to K, as "
                "3/8 for the third of eight"
            )

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return the shard that a text such as `3/8` describes.

        Raises:
            ConfigError: The text does not describe a shard.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None:
            raise ConfigError(f"expected a shard as I/K, 3/8 for the third of eight, got {text!r}")
        return cls(int(match[1]), int(match[2]))

    def of_all(self, items: Iterable[_T]) -> tuple[_T, ...]:
        """Return the items that are in this shard."""
        return tuple(item for index, item in enumerate(items) if index % self.of == self.number - 1)
