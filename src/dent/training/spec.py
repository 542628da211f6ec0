"""The identity of a training run. A folder's run is resumed only if its identity is equal."""

from typing import Any, Final, Self

import torch
from pydantic import ConfigDict, ValidationError

from dent.errors import ConfigError
from dent.evaluation.records.plan import seed_of
from dent.evaluation.records.spec import differences
from dent.storage.canonical import Record, digest
from dent.training.recipe import Recipe

SCHEMA: Final = 1


class DataIdentity(Record):
    """The identity of a dataset that a training run uses.

    Attributes:
        name: its `dent.data` name.
        digest: SHA-256 of its content.
        images: number of images.
        classes: number of classes.
    """

    name: str
    digest: str
    images: int
    classes: int


class TrainingSpec(Record):
    """Everything that determines the weights, except the machine's arithmetic.

    Attributes:
        schema_version: version of this record's schema.
        model: the name of the architecture or factory, as `dent.models.build` takes it.
        initial: digest of the weights that training starts from.
        started_from: name of the file of these weights; None if they were drawn from the seed.
        recipe: the recipe's fields.
        train: the training set.
        used: number of images trained on, which are the first of `train`, in the order of
            `arranged`.
        watch: the dataset of the watched images, which the guard against catastrophic overfitting
            and the choice of the best weights use. The model card measures other images.
        watched: number of watched images, which are the last of `watch`, in the order of
            `arranged`.
        watch_steps: PGD steps of the guard.
        seed: seed of every random draw.
        precision: "no" (float32), "bf16" or "fp16".
        processes: number of processes that share each batch.
        drawn: whether `arranged` draws an order, because a dataset is in the order of its classes:
            its first or last images would be of few classes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: int = SCHEMA
    model: str
    initial: str
    started_from: str | None
    recipe: dict[str, Any]
    train: DataIdentity
    used: int
    watch: DataIdentity
    watched: int
    watch_steps: int
    seed: int
    precision: str
    processes: int
    drawn: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; `drawn` only if it is true, as older runs."""
        values = super().to_json()
        return values if self.drawn else {k: v for k, v in values.items() if k != "drawn"}

    def arranged(self, images: int) -> list[int]:
        """Return the positions of a dataset in the order in which this run divides it."""
        if not self.drawn:
            return list(range(images))
        draws = torch.Generator().manual_seed(seed_of(0, "arranged"))
        order: list[int] = torch.randperm(images, generator=draws).tolist()
        return order

    @property
    def identity(self) -> str:
        """SHA-256 of the whole spec."""
        return digest(self.to_json())

    def differences(self, other: Self) -> tuple[str, ...]:
        """Return a sentence for every field in which a folder's run differs from this one."""
        return differences(other.to_json(), self.to_json())

    def read_recipe(self) -> Recipe:
        """Return the recipe as an object."""
        return Recipe(**self.recipe)

    @classmethod
    def read(cls, values: object, where: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: `values` does not have the fields of a training spec.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(
                f"{where} contains no training spec of this version: {error}"
            ) from error
