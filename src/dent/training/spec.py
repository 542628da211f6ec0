"""The identity of a training. A folder's training is resumed only if its identity is equal."""

from typing import Any, Final, Self

from pydantic import ConfigDict, ValidationError

from dent.errors import ConfigError
from dent.evaluation.records.spec import differences
from dent.storage.canonical import Record, digest
from dent.training.recipe import Recipe

SCHEMA: Final = 1


class DataIdentity(Record):
    """A dataset of a training.

    Attributes:
        name: its `dent.data` name.
        digest: SHA-256 of its content.
        images: how many.
        classes: how many.
    """

    name: str
    digest: str
    images: int
    classes: int


class TrainingSpec(Record):
    """Everything that determines the weights, except the machine's arithmetic.

    Attributes:
        schema_version: of this record.
        model: the architecture's name, as `dent.models.resnet` or a factory takes it.
        initial: digest of the weights that training starts from.
        started_from: the file these came from; None where they were drawn from the seed.
        recipe: the recipe's fields.
        train: what is trained on.
        used: how many of its images, its first ones.
        watch: what the guard and the choice of the best weights look at; disjoint from what the
            model card's accuracies are measured on.
        watched: how many images of it, its last ones.
        watch_steps: PGD steps of the guard.
        seed: what every draw derives from.
        precision: "no" (float32), "bf16" or "fp16".
        processes: how many shared each batch.
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

    @property
    def identity(self) -> str:
        """SHA-256 of the whole spec."""
        return digest(self.to_json())

    def differences(self, other: Self) -> tuple[str, ...]:
        """Return a sentence for every field in which a folder's training differs from this one."""
        return differences(other.to_json(), self.to_json())

    def read_recipe(self) -> Recipe:
        """Return the recipe as an object."""
        return Recipe(**self.recipe)

    @classmethod
    def read(cls, values: object, where: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: it is no training spec, or one of a newer version.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(
                f"{where} contains no training spec of this version: {error}"
            ) from error
