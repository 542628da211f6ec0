"""The facts that the registry has about a model without loading it, and protocols of sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dent.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn


@dataclass(frozen=True)
class Accuracy:
    """A published or measured accuracy, as counts, with its provenance.

    Args:
        correct: Images classified correctly.
        total: Images classified, at least 1.
        provenance: Who measured it, on which images, with what.
        threat: The threat model's label such as `linf 8/255`; `None` for clean accuracy.
        attack: The attack's name; given if and only if `threat` is.

    Raises:
        ConfigError: If the counts contradict each other, or only one of threat and attack is given.
    """

    correct: int
    total: int
    provenance: str
    threat: str | None = None
    attack: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.total or self.total < 1:
            raise ConfigError(
                f"Accuracy: expected 0 <= correct <= total and total >= 1, got "
                f"correct={self.correct}, total={self.total}"
            )
        if (self.threat is None) != (self.attack is None):
            raise ConfigError(
                "Accuracy: a robust accuracy needs both threat and attack and a natural one "
                f"neither, got threat={self.threat!r}, attack={self.attack!r}"
            )

    @property
    def value(self) -> float:
        """The accuracy as a fraction in [0, 1]."""
        return self.correct / self.total


@dataclass(frozen=True)
class OnImages:
    """Accuracies on the same images, so that they can be compared.

    Attributes:
        total: The number of images.
        natural: Clean accuracy; None if it was not measured on these images.
        attacked: Robust accuracies.
    """

    total: int
    natural: Accuracy | None
    attacked: tuple[Accuracy, ...]


def by_images(accuracies: Sequence[Accuracy]) -> tuple[OnImages, ...]:
    """Group accuracies by their numbers of images, in the order given."""
    totals = dict.fromkeys(accuracy.total for accuracy in accuracies)
    return tuple(
        OnImages(
            total,
            next((a for a in accuracies if a.total == total and a.threat is None), None),
            tuple(a for a in accuracies if a.total == total and a.threat is not None),
        )
        for total in totals
    )


@dataclass(frozen=True)
class ModelInfo:
    """A model of the registry, as plain values for JSON.

    Args:
        name: The name that `dent.models.load` takes.
        architecture: The architecture, in words.
        dataset: The dataset it was trained for, by its `dent.data` name, which for ImageNet also
            says how the images are resized and cropped.
        num_classes: Logits per image.
        threat: Label of the threat model it was trained against; `None` for nominal training.
        source: The source of the weights.
        digest: SHA-256 (hex) of the weights file, or its first digits if no more is published;
            checked before the file is decoded. `None` if none is published.
        size: Size of the weights file in bytes; `None` if unknown.
        accuracies: Clean and robust accuracies, each with its provenance.
        present: Whether the weights file existed locally when this entry was created.
        file: Path of the weights file, whether it exists or not; `None` if that is unknown.
        url: The address of the download; `None` if it needs none.
        classes: The names of the classes, in the order of the logits, if the source states them.
    """

    name: str
    architecture: str
    dataset: str
    num_classes: int
    threat: str | None
    source: str
    digest: str | None
    size: int | None
    accuracies: tuple[Accuracy, ...]
    present: bool
    file: str | None = None
    url: str | None = None
    classes: tuple[str, ...] | None = None


class Source(Protocol):
    """A source whose models come with the installation: bundled files, or another package.

    The registry is a tuple of sources (`dent.models.zoo.SOURCES`); a new source is one more item.
    """

    def entries(self) -> tuple[ModelInfo, ...]:
        """Return an entry for every model of this source, without loading, network or extras."""

    def load(self, name: str) -> nn.Module:
        """Build one of `entries()` by name on the CPU, with verified weights.

        Raises:
            WeightsError: If the weights are missing or are not the ones registered.
        """


class Catalogue(Protocol):
    """Another zoo: many models, named `{prefix}/...`, whose weights must be downloaded.

    `dent.models.zoo.CATALOGUES` lists them. Weights that you put in place yourself also work.
    """

    @property
    def prefix(self) -> str:
        """Prefix of its models' names, without the slash."""

    def names(self) -> tuple[str, ...]:
        """Return all full names, or, for a zoo without a list, the names on this machine.

        This needs no network.

        Raises:
            MissingExtraError: If it needs a package that is not installed.
        """

    def candidates(self, short: str) -> tuple[str, ...]:
        """Return the full names that a name without the prefix can mean."""

    def info(self, name: str) -> ModelInfo:
        """Return the facts about a model, by its full name, without reading its weights.

        Raises:
            UnknownNameError: If there is no such model.
            MissingExtraError: If it needs a package that is not installed.
            WeightsError: If a description must be downloaded and cannot be.
        """

    def load(self, name: str, weights: Path | None, num_classes: int | None) -> nn.Module:
        """Build a model on the CPU, with its weights, for images in [0, 1].

        Args:
            name: The model's full name.
            weights: A file to read instead of the published one.
            num_classes: Logits per image, if `weights` were trained for another number.

        Raises:
            UnknownNameError: If there is no such model.
            MissingExtraError: If it needs a package that is not installed.
            WeightsError: If the weights are missing and cannot be downloaded, or do not fit.
            ConfigError: If the model cannot have that many classes.
        """
