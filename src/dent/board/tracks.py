"""The tracks of the board, as data: base model, samples, threat model and suite.

Half of a track's samples are fixed and public. A nonce draws the other half. It is chosen after a
defense is submitted, so nobody can tune a defense on that half.
"""

import hashlib
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Final, Literal

from pydantic import Field

from dent.errors import ConfigError, UnknownNameError
from dent.evaluation.records.spec import Budget, Order, Randomness, Settings, Sha256
from dent.storage.canonical import Record, digest
from dent.support import ranges
from dent.support.suggest import did_you_mean

HEADLINE: Final = "headline"
"""The variant that a row is ranked by."""
VIEWS: Final = "views"
"""The variant that evaluates the mean over views of each image, for comparison with a row."""
NOT_OF_THE_BOARD: Final = "for practice: its rows are not part of the board"
"""What is said of a practice track wherever it or one of its rows is shown."""
NONE: Final = ""
_LONGEST_NONCE: Final = 200


class Variant(Record):
    """One way to evaluate a track: how its samples form batches, and what attackers know."""

    order: Order = "dataset"
    mix: float | None = None
    randomness: Randomness = "private"
    """Whether an attacker knows the random numbers of the submission."""


VARIANTS: Final[dict[str, Variant]] = {
    HEADLINE: Variant(),
    "by-class": Variant(order="by-class"),
    "mix-0.25": Variant(mix=0.25),
    "public": Variant(randomness="public"),
    VIEWS: Variant(),
}
"""The variants of every track; each is a separate run."""


class Track(Record):
    """The settings that all rows in one table of the board share."""

    name: str
    title: str
    """Part of the identity of recorded rows, so its wording stays. Pages show `label`."""
    model: str
    """The base model, by its name in `dent models`. A defense gets it, and is compared with it."""
    weights: Sha256 | None = None
    """`dent.models.weights_digest` of the base model; null if it is not fixed yet. Rows stay valid
    when it is fixed."""
    dataset: str
    split: Literal["test"] = "test"
    digest: str | None = None
    """Digest of the dataset; null if it is not fixed yet. Rows stay valid when it is fixed."""
    norm: Literal["linf", "l2"]
    eps: str
    fixed: str | None = None
    """Ids of the fixed half, as ranges; null if the track's name draws them from the pool."""
    pool: str
    """Ids, as ranges, from which the other half is drawn, without the ids of the fixed half."""
    half: int = Field(default=512, ge=1)
    """Number of samples in each half."""
    batch_size: int = 128
    variants: dict[str, Variant] = VARIANTS
    suite: int
    """Version of the dynamic suite."""
    budget: Budget = "small"
    seed: int = 0
    practice: bool = False
    """Whether it is only for trying the commands. Its rows are not part of the board."""

    @property
    def fixed_ids(self) -> tuple[int, ...]:
        """The ids of the fixed half, in order."""
        if self.fixed is None:
            return self._draw(NONE, ranges.read(self.pool))
        return tuple(sorted(ranges.read(self.fixed)))

    def ids(self, nonce: str | None = None) -> tuple[int, ...]:
        """Return the ids of all attacked samples, in order.

        Args:
            nonce: Draws the second half. If None, there is only the fixed half.

        Raises:
            ConfigError: The nonce is empty or longer than 200 characters.
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
        """Return the settings with which `dent.evaluation.evaluate` evaluates a variant.

        Raises:
            UnknownNameError: The track has no such variant.
            ConfigError: The nonce is empty or longer than 200 characters.
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
        """The title in current wording."""
        return self.title.replace("the shipped", "the bundled")

    @property
    def identity(self) -> str:
        """SHA-256 over all fields but `practice`, and the ids of the fixed half."""
        return self._identity(self.weights, self.digest)

    @property
    def identities(self) -> frozenset[str]:
        """The identity, and those that the track had before `weights` and `digest` were fixed.

        A row with any of them is on this track. Its run is compared with the digests of today.
        """
        return frozenset(
            self._identity(weights, content)
            for weights in (self.weights, None)
            for content in (self.digest, None)
        )

    def _identity(self, weights: str | None, content: str | None) -> str:
        fields = self.model_dump(mode="json", exclude={"practice"})
        digests = {"weights": weights, "digest": content}
        return digest(fields | digests | {"fixed_ids": list(self.fixed_ids)})

    def _draw(self, nonce: str, pool: Iterable[int]) -> tuple[int, ...]:
        """Return the ids of one half: the lowest in the pool by SHA-256 of name, nonce and id."""
        lots = {
            id_: hashlib.sha256("\n".join((self.name, nonce, str(id_))).encode()).digest()
            for id_ in pool
        }
        return tuple(sorted(sorted(lots, key=lots.__getitem__)[: self.half]))


@cache
def tracks() -> dict[str, Track]:
    """Return all tracks by name."""
    entries = tomllib.loads(files("dent.board").joinpath("tracks.toml").read_text("utf-8"))
    return {name: Track(name=name, **values) for name, values in entries.items()}


def track(name: str) -> Track:
    """Return a track by name.

    Raises:
        UnknownNameError: There is no such track.
    """
    if name not in tracks():
        raise UnknownNameError(
            f"there is no track {name!r}.{did_you_mean(name, tracks())} `dent board tracks` lists "
            "them"
        )
    return tracks()[name]
