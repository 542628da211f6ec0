"""The scales of tables, and the replacements of the paper's models, as read from data files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from dent import models
from dent.errors import UnknownNameError
from dent.evaluation.records.spec import Budget
from dent.paper.spec import Profile, Strict


class RoleTraining(Strict):
    """The recipe with which `dent train` makes a model of the paper."""

    model: str
    """Name of the architecture, such as `resnet-26-4`."""
    recipe: str
    """A full name in `dent.training.RECIPES`."""


class Role(Strict):
    """A model of the paper."""

    paper: str
    """The paper's name for it."""
    zoo: str | None = None
    """Its name for `dent.models.load`; None if `train` makes it."""
    train: RoleTraining | None = None
    dataset: str
    """Its name for `dent.data.load`."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.zoo is None) == (self.train is None):
            raise ValueError(f"{self.paper}: give zoo or train, one of them")
        return self

    def weights(self, folder: Path) -> Path | None:
        """Return the path of the weights that `command` makes; None for a model of the zoo."""
        if self.train is None:
            return None
        return folder / self._name / "best.safetensors"

    def command(self, folder: Path) -> str | None:
        """Return the command that makes the weights; None for a model of the zoo."""
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
        suffix = "" if self.dataset == "cifar10" else f"-{self.dataset}"
        return f"{self.train.model}-{self.train.recipe}{suffix}"


class SuiteScale(Strict):
    """The size of a run of the dynamic suite at a scale."""

    budget: Budget
    samples: int = Field(ge=1)
    batch_size: int = Field(ge=1)


class ProfileScale(Strict):
    """The changes of a scale to a profile."""

    size: int | None = None
    batch_size: int | None = None
    rounds: int | None = None

    def of(self, profile: Profile) -> Profile:
        """Return a profile with these changes."""
        changed = {name: value for name, value in self if value is not None}
        return profile.model_copy(update=changed)


class TableScale(Strict):
    """The changes of a scale for one table."""

    samples: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    leave_out: tuple[str, ...] = ()
    """Columns that are not measured."""
    suite: tuple[str, ...] | None = None
    """The cells on which the dynamic suite runs at this scale; None for all in `Table.suite`."""
    profile: ProfileScale = ProfileScale()


class Scale(Strict):
    """A scale: how large the runs of the tables are, and what replaces models and attacks."""

    id: str
    says: str
    samples: int = Field(ge=1)
    """Number of samples, from the start of the dataset."""
    batch_size: int = Field(ge=1)
    dataset: str | None = None
    """The dataset for all models; None for each model's own."""
    suite: SuiteScale
    attacks: dict[str, dict[str, str]]
    """For each attack of the tables and each of its parts, the text for `dent.attacks.make_from`.
    """
    stand_ins: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """For each model of the paper, the models that may replace it: names of the zoo or of
    models.toml. The first known one is used."""
    tables: dict[str, TableScale] = Field(default_factory=dict)

    def of(self, table: str) -> TableScale:
        """Return the scale's changes for a table."""
        return self.tables.get(table, TableScale())


@dataclass(frozen=True)
class Chosen:
    """The model that is run for one of the paper's models.

    Attributes:
        name: Its name for `dent.models.load`.
        weights: File of weights, if the name is only an architecture.
        dataset: Name of its dataset.
        stands_for: The paper's name of the model that it replaces; empty if it is that model.
        made_by: The command that makes the weights, if the user has to make them.
    """

    name: str
    weights: Path | None
    dataset: str
    stands_for: str = field(default="", compare=False)
    made_by: str | None = field(default=None, compare=False)


def choose(scale: Scale, role: str, roles: Mapping[str, Role], folder: Path) -> Chosen:
    """Choose the model that is run for one of the paper's models.

    Args:
        scale: The scale.
        role: Name of the paper's model in models.toml.
        roles: All roles by name.
        folder: Folder of trained weights.

    Raises:
        UnknownNameError: models.toml has no such name, or none of the stand-ins is known.
    """
    if role not in roles:
        raise UnknownNameError(f"models.toml has no {role!r}; it has {', '.join(roles)}")
    wanted_role = roles[role]
    for name in scale.stand_ins.get(role, (role,)):
        candidate = roles.get(name)
        stands_for = "" if name == role else wanted_role.paper
        if candidate is not None and candidate.train is not None:
            dataset = scale.dataset or candidate.dataset
            made_by = candidate.command(folder)
            return Chosen(
                candidate.train.model, candidate.weights(folder), dataset, stands_for, made_by
            )
        zoo_name = candidate.zoo if candidate is not None else name
        if zoo_name is not None and zoo_name in models.names():
            dataset = scale.dataset or (candidate or wanted_role).dataset
            return Chosen(zoo_name, None, dataset, stands_for)
    raise UnknownNameError(
        f"scale {scale.id}: none of {', '.join(scale.stand_ins.get(role, (role,)))} is a model of "
        "the zoo or of models.toml"
    )
