"""At which scale a table is run, and which model stands for which: data, too."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from dent import models
from dent.errors import UnknownNameError
from dent.paper.spec import Profile, Strict


class Training(Strict):
    """How a model of the paper is made by `dent train`."""

    model: str
    """`resnet-26-4`."""
    recipe: str
    """A full name of `dent.training.RECIPES`."""


class Role(Strict):
    """A model of the paper."""

    paper: str
    """What the paper calls it."""
    zoo: str | None = None
    """Its name for `dent.models.load`."""
    train: Training | None = None
    dataset: str
    """A name of `dent.data.load`."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.zoo is None) == (self.train is None):
            raise ValueError(f"{self.paper}: give zoo or train, one of them")
        return self

    def weights(self, folder: Path) -> Path | None:
        """Where `command` leaves the weights; None for a model of the zoo."""
        if self.train is None:
            return None
        return folder / self._name / "best.safetensors"

    def command(self, folder: Path) -> str | None:
        """What makes the weights; None for a model of the zoo."""
        if self.train is None:
            return None
        return (
            f"dent train --recipe {self.train.recipe} --model {self.train.model} "
            f"--dataset {self.dataset} --out {folder / self._name}"
        )

    @property
    def _name(self) -> str:
        if self.train is None:
            return ""
        other = "" if self.dataset == "cifar10" else f"-{self.dataset}"
        return f"{self.train.model}-{self.train.recipe}{other}"


class SuiteScale(Strict):
    """How much of the dynamic suite a scale runs."""

    budget: Literal["small", "standard", "full"]
    samples: int = Field(ge=1)
    batch_size: int = Field(ge=1)


class ProfileScale(Strict):
    """What a scale changes of a profile."""

    size: int | None = None
    batch_size: int | None = None
    rounds: int | None = None

    def of(self, profile: Profile) -> Profile:
        """The profile at this scale."""
        changed = {name: value for name, value in self if value is not None}
        return profile.model_copy(update=changed)


class TableScale(Strict):
    """What a scale changes for one table."""

    samples: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    leave_out: tuple[str, ...] = ()
    """Columns that are not measured."""
    suite: tuple[str, ...] | None = None
    """Of the cells beside which the dynamic suite is run, those that it is run for; else all."""
    profile: ProfileScale = ProfileScale()


class Scale(Strict):
    """How large a table is run."""

    id: str
    says: str
    samples: int = Field(ge=1)
    """The first so many of the dataset."""
    batch_size: int = Field(ge=1)
    dataset: str | None = None
    """In the place of every model's own."""
    suite: SuiteScale
    attacks: dict[str, dict[str, str]]
    """By the tables' name, by part, what `dent.attacks.make_from` takes."""
    stand_ins: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """By the paper's model, names of the zoo or of models.toml: the first that there is."""
    tables: dict[str, TableScale] = Field(default_factory=dict)

    def of(self, table: str) -> TableScale:
        """What it changes for a table."""
        return self.tables.get(table, TableScale())


@dataclass(frozen=True)
class Chosen:
    """The model that is run for one of the paper's.

    Attributes:
        name: For `dent.models.load`.
        weights: File of weights, where the name is an architecture alone.
        dataset: Its images.
        stands_for: What the paper calls the model that it stands for; empty where it is that one.
        made_by: The command that makes the weights, where that is for the user to do.
    """

    name: str
    weights: Path | None
    dataset: str
    stands_for: str = field(default="", compare=False)
    made_by: str | None = field(default=None, compare=False)


def choose(scale: Scale, role: str, roles: Mapping[str, Role], folder: Path) -> Chosen:
    """Which model is run for one of the paper's.

    Args:
        scale: The scale.
        role: A name of models.toml.
        roles: All of them.
        folder: Where trained weights lie.

    Raises:
        UnknownNameError: There is no such model, or none of the stand-ins is here.
    """
    if role not in roles:
        raise UnknownNameError(f"models.toml has no {role!r}; it has {', '.join(roles)}")
    asked = roles[role]
    for name in scale.stand_ins.get(role, (role,)):
        found = roles.get(name)
        stands_for = "" if name == role else asked.paper
        if found is not None and found.train is not None:
            dataset = scale.dataset or found.dataset
            made_by = found.command(folder)
            return Chosen(found.train.model, found.weights(folder), dataset, stands_for, made_by)
        known = found.zoo if found is not None else name
        if known is not None and known in models.names():
            dataset = scale.dataset or (found or asked).dataset
            return Chosen(known, None, dataset, stands_for)
    raise UnknownNameError(
        f"scale {scale.id}: none of {', '.join(scale.stand_ins.get(role, (role,)))} is a model of "
        "the zoo or of models.toml"
    )
