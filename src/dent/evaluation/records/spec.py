"""The specification of an evaluation: exactly the values that determine its result."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from dent.errors import ConfigError
from dent.evaluation.records.upgrade import upgraded
from dent.storage.canonical import Record, digest

SCHEMA_VERSION: Final = 2
SchemaVersion = Literal[1, 2]
"""A run keeps the schema version that it started with."""
STATIC: Final = "static"
"""Name of the static reference: the trained model, attacked with the same budget."""

Order = Literal["dataset", "shuffled", "by-class"]
Randomness = Literal["private", "public"]
Budget = Literal["small", "standard", "full"]
"""How long the attacks of a suite run."""
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Settings(Record):
    """How the samples form batches, and what else runs.

    Raises:
        ConfigError: A key is unknown, or a value out of range.
    """

    n: int | None = Field(default=None, ge=1)
    """Number of samples to attack: the first `n` of the dataset, or all."""
    batch_size: int = Field(default=128, ge=1)
    """Members per batch. A smaller last batch raises a flag."""
    order: Order = "dataset"
    """How the samples form batches. It does not change which samples are attacked."""
    mix: float | None = Field(default=None, gt=0, le=1)
    """Share of every batch that is attacked, at least one member. The other members are natural
    images drawn from the dataset. With None or 1, all members are attacked."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed from which every other seed of the run is derived."""
    static: bool = True
    """Whether to attack the static model with the same budget, for comparison."""
    transfer: bool = True
    """Whether to submit the adversarial images of the static model to every defense."""
    diagnostics: Literal["cheap", "full"] = "cheap"
    """`cheap` makes some queries about the first batch. `full` also attacks that batch with a huge
    eps, and at most 16 of its members with twice the iterations."""
    tensors: Literal["keep", "drop"] = "keep"
    """Whether the run folder keeps the adversarial images. `dent verify` needs them."""
    until: Literal["decided", "end"] = "decided"
    """`decided`: a run of the whole suite stops attacking a defense when a gain can no longer be
    shown with these samples. `end`: every attack runs."""
    ids: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)
    """Ids of the samples to attack, in the full split. Replaces `n`. They are sorted."""
    randomness: Randomness = "private"
    """`public`: the attacker knows the seed of the submission, so every query of an attack draws
    the random numbers of the submission. `private`: the attacker does not know it."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_settings_error(error)) from None

    @field_validator("ids")
    @classmethod
    def _in_order(cls, ids: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if ids is not None and len(set(ids)) < len(ids):
            raise ValueError("an id is there twice")
        return None if ids is None else tuple(sorted(ids))

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.n is not None and self.ids is not None:
            raise ValueError("n and ids both choose the samples: give one of them")
        return self


class ModelSpec(Record):
    """The static model."""

    name: str
    kind: str
    """Class of the model."""
    weights: Sha256
    """Digest of the weights, by `dent.models.weights_digest`."""


class DatasetSpec(Record):
    """The samples."""

    name: str
    split: str
    digest: str
    size: int
    classes: tuple[str, ...]


class DefenseSpec(Record):
    """A defense, as it describes itself."""

    name: str
    kind: str
    config: dict[str, JsonValue]
    weights: Sha256 | None
    """Digest of its state dict, if it is a module."""
    batch_dependent: bool
    """Whether the defense declares that it depends on its batch."""


class AttackSpec(Record):
    """An attack and its hyper-parameters."""

    name: str
    """Name of the attack in this run."""
    attack: str | None
    """Name for `dent.attacks.make`; null for a user's own attack."""
    kind: str
    """Class of the attack."""
    settings: dict[str, JsonValue]
    """Arguments for `dent.attacks.make(attack, **settings)`, including defaults. For a user's own
    attack, its fields."""
    versions: dict[str, str]
    """Versions of the other packages that the attack uses."""
    protocol: Literal["frozen", "published"]
    """`published` attacks all samples in one call and regroups them into batches."""


class ThreatSpec(Record):
    """The threat model, with `eps` as the user wrote it."""

    norm: Literal["linf", "l2", "l1"]
    eps: str
    bounds: tuple[float, float]


_LATER: Final = ("schedule", "same_on_static")
_LATER_SETTINGS: Final = ("until", "ids", "randomness")
"""Later fields. Records omit them if they have their defaults, to stay comparable with old ones."""
Schedule = Literal["by-batch", "by-attack"]


class EvaluationSpec(Record):
    """Everything that determines the records of a run."""

    schema_version: Literal[2] = SCHEMA_VERSION
    model: ModelSpec
    dataset: DatasetSpec
    defenses: tuple[DefenseSpec, ...]
    """In the order of the attacks, with the static model first."""
    attacks: tuple[AttackSpec, ...]
    threat: ThreatSpec
    settings: Settings
    schedule: Schedule = "by-batch"
    """`by-batch` runs every attack on a batch before the next batch. `by-attack`, for runs of the
    whole suite, runs an attack on all batches before the next attack, with the static model first.
    In runs by attack, fooled members of batch-independent defenses keep the image that broke them.
    """
    same_on_static: dict[str, str] = Field(default={})
    """For each attack that is redundant on the static model, the attack that covers it there."""
    _schema_1: dict[str, Any] | None = PrivateAttr(default=None)

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(values, dict) or values.get("schema_version") != 1:
            return handler(values)
        spec = handler(upgraded(values))
        spec._schema_1 = values
        return spec

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, in the schema from which the specification was read."""
        if self._schema_1 is not None:
            return self._schema_1
        values = super().to_json()
        later = ((values, type(self), _LATER), (values["settings"], Settings, _LATER_SETTINGS))
        for part, kind, names in later:
            for name in names:
                if part[name] == kind.model_fields[name].default:
                    del part[name]
        return values

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy. A copy with changes has the newest schema."""
        copied = super().model_copy(update=update, deep=deep)
        if update:
            copied._schema_1 = None
        return copied

    @property
    def written_as(self) -> SchemaVersion:
        """The schema version of `to_json`."""
        return SCHEMA_VERSION if self._schema_1 is None else 1

    @property
    def newest(self) -> Self:
        """The same specification in the newest schema, for comparison with others."""
        newest = super().model_copy()
        newest._schema_1 = None
        return newest

    @property
    def identity(self) -> str:
        """SHA-256 over all fields. Two runs with the same identity have the same records."""
        return digest(self.to_json())

    @property
    def samples(self) -> int:
        """Number of attacked samples."""
        if self.settings.ids is not None:
            return len(self.settings.ids)
        return min(self.settings.n or self.dataset.size, self.dataset.size)

    @property
    def has_static(self) -> bool:
        """Whether the run has the static reference."""
        return any(defense.name == STATIC for defense in self.defenses)


class OfSpec(Record):
    """A record with a specification, written in the schema of that specification."""

    spec: EvaluationSpec

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return super().to_json() | {"spec": self.spec.to_json()}


def differences(
    recorded: Any,
    requested: Any,
    path: str = "",
    names: tuple[str, str] = ("the folder has", "this run has"),
) -> tuple[str, ...]:
    """Return one sentence for each field in which two JSON values differ.

    For lists of objects with a name, one sentence says which names differ.

    Args:
        recorded: The value in a run folder.
        requested: The requested value.
        path: Dotted name of the values, for the sentences.
        names: Labels of the two values, for the sentences.
    """
    if recorded == requested:
        return ()
    if isinstance(recorded, dict) and isinstance(requested, dict):
        keys = [*recorded, *(key for key in requested if key not in recorded)]
        return _among(keys, recorded, requested, path, names)
    if (
        isinstance(recorded, list)
        and isinstance(requested, list)
        and not _named(recorded, requested)
    ):
        if len(recorded) == len(requested):
            return _among(range(len(recorded)), recorded, requested, path, names)
    elif isinstance(recorded, list) and isinstance(requested, list):
        old = {item["name"]: item for item in recorded}
        new = {item["name"]: item for item in requested}
        if old.keys() != new.keys():
            gone = ", ".join(name for name in old if name not in new) or _ABSENT
            added = ", ".join(name for name in new if name not in old) or _ABSENT
            sentences = (f"{path}: {names[0]} {gone}; {names[1]} {added}",)
            common = [name for name in old if name in new]
            return sentences + _among(common, old, new, path, names)
        return differences(old, new, path, names) or (
            f"{path}: the order was {', '.join(old)}, and is now {', '.join(new)}",
        )
    return (f"{path}: {names[0]} {_short(recorded)}, {names[1]} {_short(requested)}",)


_ABSENT: Final = "nothing"


def _among(
    keys: Any, recorded: Any, requested: Any, path: str, names: tuple[str, str]
) -> tuple[str, ...]:
    sentences: list[str] = []
    for key in keys:
        key_path = f"{path}.{key}" if path else str(key)
        old, new = (
            values[key] if isinstance(key, int) else values.get(key, _ABSENT)
            for values in (recorded, requested)
        )
        sentences += differences(old, new, key_path, names)
    return tuple(sentences)


def _named(*lists: list[Any]) -> bool:
    return all(isinstance(item, dict) and "name" in item for items in lists for item in items)


def _short(value: Any) -> str:
    text = value if value is _ABSENT else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _settings_error(error: ValidationError) -> str:
    settings = ", ".join(Settings.model_fields)
    messages = []
    for problem in error.errors():
        name = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            messages.append(f"there is no setting {name!r}, only {settings}")
        else:
            where = f"{name}: " if name else ""
            # Errors of this class's validators are complete. Pydantic's prefix is left out.
            if problem["type"] == "value_error":
                messages.append(f"{where}{problem['ctx']['error']}")
                continue
            message = problem["msg"]
            told = message.removeprefix("Input should be ")
            message = f"{where}{message}" if told == message else f"{name} must be {told}"
            messages.append(f"{message}, got {_short(problem['input'])}")
    return f"evaluation settings: {'; '.join(messages)}"
