"""The checked choices of a visitor: together with the image, they decide what the page computes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from dent import models
from dent.attacks import Attack, make
from dent.config import DENT, DENT_NOMINAL, DENT_PLUS, DentConfig
from dent.errors import ConfigError
from dent.support.checks import check_choice, check_counts, is_count
from dent.threat import ThreatModel

AttackName = Literal["pgd", "apgd-ce"]
Rung = Literal["transfer", "stop-gradient", "unrolled"]
Target = Literal["batch", "image"]

DATASET: Final = "cifar10-sample"
"""Name of the dataset whose images the page shows."""
DEFENSES: Final[Mapping[str, DentConfig]] = {
    "dent+": DENT_PLUS,
    "dent": DENT,
    "dent-nominal": DENT_NOMINAL,
}
"""The defenses to choose from, the fastest first."""
RUNGS: Final[tuple[Rung, ...]] = get_args(Rung)
"""The attacks on the defense, by how much of the adaptation they use, from none to all of it."""
MOST_STEPS: Final = 30
MOST_ITERATIONS: Final = 40
MOST_MEMBERS: Final = 32
LARGEST_SEED: Final = 2**31 - 1
LARGEST_EPS: Final[Mapping[str, float]] = {"linf": 16 / 255, "l2": 2.0}
ENOUGH_FOR_STATISTICS: Final = 32
"""Smallest batch size at which batch statistics are more than noise (paper Table 9)."""


@dataclass(frozen=True)
class Setup:
    """The settings of a run, apart from the image.

    Attributes:
        threat: The threat model: a norm and an eps up to its limit in `LARGEST_EPS`, with pixels
            in [0, 1].
        model: One of `offered_models`.
        defense: A name in `DEFENSES`.
        steps: Steps of the defense, up to `MOST_STEPS`; None for those of the preset.
        attack: The attack on the static model, and on the defense by `stop-gradient`.
        rungs: The attacks on the defense. The result of the attack on the static model is always
            submitted to the defense; `transfer` also submits every batch of its queries.
        iterations: Iterations of the attack, up to `MOST_ITERATIONS`; `unrolled` takes half as
            many.
        batch_size: Members of the batch including the image, up to `MOST_MEMBERS`.
        target: The attacked members: the whole `batch`, or only the `image`.
        seed: Seed of the draw of the other members, and of the attacks.

    Raises:
        ConfigError: A value is out of range.
    """

    threat: ThreatModel
    model: str = "resnet-14-2-linf"
    defense: str = "dent+"
    steps: int | None = None
    attack: AttackName = "pgd"
    rungs: tuple[Rung, ...] = RUNGS
    iterations: int = 8
    batch_size: int = 16
    target: Target = "batch"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        if not isinstance(self.threat, ThreatModel):
            expected = "such as ThreatModel('linf', '8/255')"
            raise ConfigError(f"threat must be a ThreatModel, {expected}, got {self.threat!r}")
        norm, largest = self.threat.norm, LARGEST_EPS.get(self.threat.norm, 0.0)
        check_choice("norm", norm, tuple(LARGEST_EPS))
        if self.threat.eps > largest:
            limit = ThreatModel(norm, largest)
            raise ConfigError(f"eps must be at most {limit.label} here, got {self.threat.label}")
        check_choice("model", self.model, offered_models())
        check_choice("defense", self.defense, tuple(DEFENSES))
        check_choice("attack", self.attack, get_args(AttackName))
        check_choice("target", self.target, get_args(Target))
        if isinstance(self.rungs, str):
            raise ConfigError(f"rungs must be a tuple of names, got {self.rungs!r}")
        for rung in self.rungs:
            check_choice("rung", rung, RUNGS)
        if self.steps is not None:
            _check_count("steps", self.steps, MOST_STEPS)
        _check_count("iterations", self.iterations, MOST_ITERATIONS)
        _check_count("batch size", self.batch_size, MOST_MEMBERS)
        check_counts(0, seed=self.seed)
        if self.seed > LARGEST_SEED:
            raise ConfigError(f"seed must be at most {LARGEST_SEED}, got {self.seed}")

    @property
    def config(self) -> DentConfig:
        """The configuration of the defense."""
        preset = DEFENSES[self.defense]
        return preset if self.steps is None else replace(preset, steps=self.steps)

    def of_static(self) -> Attack:
        """Return the attack on the static model."""
        return make(self.attack, iterations=self.iterations)

    def of_defense(self, rung: Rung) -> Attack:
        """Return the attack through the defense, by its last forward or by the exact gradient."""
        if rung == "unrolled":
            return make("adaptive-unrolled", losses="ce", iterations=self.unrolled_iterations)
        return make(self.attack, iterations=self.iterations)

    @property
    def unrolled_iterations(self) -> int:
        """Half of `iterations`, at least one: an exact gradient costs several plain ones."""
        return max(1, self.iterations // 2)


def offered_models() -> tuple[str, ...]:
    """Return the CIFAR-10 models whose weights are on this machine, the smallest first."""
    present = [
        entry
        for entry in map(models.info, models.names())
        if entry.present and entry.dataset == "cifar10"
    ]
    return tuple(entry.name for entry in sorted(present, key=lambda entry: entry.size or 0))


def usual_threat(model: str) -> ThreatModel:
    """Return the threat model that a model was trained against.

    For a nominal model, it is the one that the paper uses for such models: linf 1.5/255.
    """
    norm, _, eps = (models.info(model).threat or "linf 1.5/255").partition(" ")
    return ThreatModel.from_dict({"norm": norm, "eps": eps})


def _check_count(name: str, value: object, most: int) -> None:
    if not is_count(value) or (isinstance(value, int) and value > most):
        raise ConfigError(f"{name} must be a whole number from 1 to {most}, got {value!r}")
