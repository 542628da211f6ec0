"""What is evaluated on the board, as data: base model, samples, threat model, suite.

A track's fixed half of samples is public. The other half is drawn by a nonce, which is chosen once
a defense has been handed in, so that nobody can have tuned a defense on it.
"""

import hashlib
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal

from pydantic import Field

from dent.errors import ConfigError, UnknownNameError
from dent.evaluation.records.spec import Order, Randomness, Settings, Sha256
from dent.storage.canonical import Record, digest
from dent.support import ranges
from dent.support.suggest import did_you_mean

HEADLINE: Final = "headline"
"""The variant that a row is ranked by."""
VIEWS: Final = "views"
"""The variant that evaluates the mean over views of each image, to compare a row with."""
NONE: Final = ""
_LONGEST_NONCE: Final = 200


class Variant(Record):
    """How the samples of a track are laid into batches."""

    order: Order = "dataset"
    mix: float | None = None
    randomness: Randomness = "private"
    """Whether an attacker knows what a defense draws at random when it serves."""


VARIANTS: Final[dict[str, Variant]] = {
    HEADLINE: Variant(),
    "by-class": Variant(order="by-class"),
    "mix-0.25": Variant(mix=0.25),
    "public": Variant(randomness="public"),
    VIEWS: Variant(),
}
"""Of every track; each is a run of its own."""


class Track(Record):
    """What is the same for all rows of a table of the board."""

    name: str
    title: str
    """Part of the identity of recorded rows, so its wording stays; `label` is what is shown."""
    model: str
    """The base model, by a name of `dent models`; a defense is given it, and compared with it."""
    weights: Sha256 | None = None
    """`dent.models.weights_digest` of the base model; null where nobody has fixed it yet."""
    dataset: str
    split: Literal["test"] = "test"
    digest: str | None = None
    """Of the dataset; null where nobody has fixed it yet."""
    norm: Literal["linf", "l2"]
    eps: str
    fixed: str | None = None
    """Ids of the fixed half, as ranges; null where they are drawn from the pool by the name."""
    pool: str
    """Ids, as ranges, that the other half is drawn from, less those of the fixed half."""
    half: int = Field(default=512, ge=1)
    """Samples of either half."""
    batch_size: int = 128
    variants: dict[str, Variant] = VARIANTS
    suite: int
    """Version of the dynamic suite."""
    budget: Literal["small", "standard", "full"] = "small"
    seed: int = 0

    @property
    def fixed_ids(self) -> tuple[int, ...]:
        """The ids of the fixed half, in order."""
        if self.fixed is None:
            return self._draw(NONE, ranges.read(self.pool))
        return tuple(sorted(ranges.read(self.fixed)))

    def ids(self, nonce: str | None = None) -> tuple[int, ...]:
        """The ids of all samples that are attacked, in order.

        Args:
            nonce: Draws the second half; without one, there is the fixed half alone.

        Raises:
            ConfigError: The nonce is empty, or too long to be one.
        """
        fixed = self.fixed_ids
        if nonce is None:
            return fixed
        if not nonce.strip() or len(nonce) > _LONGEST_NONCE:
            raise ConfigError(
                f"a nonce is a text of 1 to {_LONGEST_NONCE} characters that nobody could know "
                "when the defense was made, such as the hash of a later block of a public chain, "
                f"got {nonce[:20]!r}"
            )
        drawn = self._draw(nonce, set(ranges.read(self.pool)).difference(fixed))
        return tuple(sorted((*fixed, *drawn)))

    def settings(
        self,
        variant: str = HEADLINE,
        nonce: str | None = None,
        until: Literal["decided", "end"] = "decided",
    ) -> Settings:
        """How `dent.evaluation.evaluate` evaluates a variant.

        Raises:
            UnknownNameError: The track has no such variant.
            ConfigError: The nonce is empty, or too long to be one.
        """
        if variant not in self.variants:
            raise UnknownNameError(
                f"there is no variant {variant!r} of {self.name}, only {', '.join(self.variants)}"
            )
        laid = self.variants[variant]
        return Settings(
            ids=self.ids(nonce),
            batch_size=self.batch_size,
            order=laid.order,
            mix=laid.mix,
            seed=self.seed,
            until=until,
            randomness=laid.randomness,
        )

    @property
    def label(self) -> str:
        """The title in today's words."""
        return self.title.replace("the shipped", "the bundled")

    @property
    def identity(self) -> str:
        """SHA-256 over all of it, the ids of the fixed half included."""
        return digest(self.to_json() | {"fixed_ids": list(self.fixed_ids)})

    def _draw(self, nonce: str, pool: Any) -> tuple[int, ...]:
        """As many ids as a half has: those with the lowest SHA-256 of name, nonce and id."""
        lots = {
            id_: hashlib.sha256("\n".join((self.name, nonce, str(id_))).encode()).digest()
            for id_ in pool
        }
        return tuple(sorted(sorted(lots, key=lots.__getitem__)[: self.half]))


@cache
def tracks() -> dict[str, Track]:
    """Every track, by name."""
    entries = tomllib.loads(files("dent.board").joinpath("tracks.toml").read_text("utf-8"))
    return {name: Track(name=name, **values) for name, values in entries.items()}


def track(name: str) -> Track:
    """The track of a name.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in tracks():
        raise UnknownNameError(
            f"there is no track {name!r}.{did_you_mean(name, tracks())} `dent board tracks` lists "
            "them"
        )
    return tracks()[name]
