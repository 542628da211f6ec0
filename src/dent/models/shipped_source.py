"""The bundled models: a safetensors file and a model card for each.

`NAME.safetensors` and `NAME.card.json` in `dent/models/shipped` define a model called `NAME`, which
needs no other registration. `dent train` writes such cards (see docs/models.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from dent.errors import WeightsError
from dent.models.info import Accuracy, ModelInfo
from dent.models.residual import resnet
from dent.models.weights import fit_weights, read_weights

FOLDER: Final = Path(__file__).parent / "shipped"
"""The folder of the bundled weights and cards."""

_CARD: Final = ".card.json"
_HALF: Final = 1e-3  # above half precision's rounding error for values around 0.2 to 0.6
_CARD_DIGITS: Final = 1e-5  # above the rounding error of the values on a card


class _Part(BaseModel):
    """A part of a card, which may have more fields than are needed here."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class CardWeights(_Part):
    """The weights file of a card.

    Attributes:
        file: Its name, in the card's folder.
        sha256: SHA-256 (hex) of its bytes.
        bytes: Its size in bytes.
        dtype: Data type of the stored values, such as `float16`.
    """

    file: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(gt=0)
    dtype: str


class CardAccuracy(_Part):
    """One measured accuracy of a card; see `Accuracy`."""

    correct: int
    total: int
    provenance: str
    threat: str | None = None
    attack: str | None = None


class Card(_Part):
    """The fields of a model card that loading and listing need."""

    schema_: Literal[1] = Field(alias="schema")
    name: str
    architecture: str
    dataset: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    threat: str | None
    weights: CardWeights
    accuracies: tuple[CardAccuracy, ...]


class ShippedModels:
    """The models in a folder of weights and cards.

    Args:
        folder: The folder; by default the one of the bundled models.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder

    def cards(self) -> tuple[Card, ...]:
        """Return every card, sorted by name.

        Raises:
            WeightsError: If a card cannot be read, or its model has another name than its file.
        """
        return tuple(_read(path) for path in sorted(self._folder.glob(f"*{_CARD}")))

    def entries(self) -> tuple[ModelInfo, ...]:
        """Return an entry for every card; see `Source.entries`."""
        return tuple(self._entry(card) for card in self.cards())

    def load(self, name: str) -> nn.Module:
        """Build a model in float32; see `Source.load`.

        Raises:
            WeightsError: If the weights are missing, do not have the card's digest, or contradict
                the card.
        """
        card = next(card for card in self.cards() if card.name == name)
        file = self._folder / card.weights.file
        if not file.is_file():
            raise WeightsError(
                f"{file}, the weights of {name!r}, is missing beside its card. Reinstall "
                "torch-dent, or put the file there"
            )
        model = resnet(card.architecture, card.num_classes, mean=card.mean, std=card.std)
        exact = {"mean": model.normalize.mean.clone(), "std": model.normalize.std.clone()}
        fit_weights(model, read_weights(file, card.weights.sha256), origin=str(file))
        _keep_exact(model.normalize, exact, file)
        return model

    def _entry(self, card: Card) -> ModelInfo:
        file = self._folder / card.weights.file
        return ModelInfo(
            name=card.name,
            architecture=card.architecture,
            dataset=card.dataset,
            num_classes=card.num_classes,
            threat=card.threat,
            source="bundled with torch-dent",
            digest=card.weights.sha256,
            size=card.weights.bytes,
            accuracies=tuple(Accuracy(**accuracy.model_dump()) for accuracy in card.accuracies),
            present=file.is_file(),
            file=str(file),
        )


def _keep_exact(normalize: nn.Module, exact: dict[str, Tensor], file: Path) -> None:
    """Restore the normalization, which half precision rounds, from the card's more exact values."""
    for what, value in exact.items():
        stored = normalize.get_buffer(what)
        if torch.allclose(stored, value, rtol=0, atol=_CARD_DIGITS):
            continue
        if not torch.allclose(stored, value, rtol=0, atol=_HALF):
            raise WeightsError(
                f"{file} was trained with the {what} {_values(stored)}, and its card says "
                f"{_values(value)}: one of them belongs to another model"
            )
        stored.copy_(value)


def _values(channels: Tensor) -> Sequence[float]:
    return [round(float(value), 4) for value in channels.flatten()]


def _read(path: Path) -> Card:
    try:
        card = Card.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise WeightsError(
            f"the model card {path} cannot be used: {error}\nCorrect it (see docs/models.md), or "
            "reinstall torch-dent"
        ) from error
    if path.name != f"{card.name}{_CARD}":
        raise WeightsError(
            f"the model card {path} describes model {card.name!r}: call it {card.name}{_CARD}"
        )
    return card
