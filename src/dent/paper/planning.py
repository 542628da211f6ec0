"""Plan the evaluations of a table at a scale."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from dent.config import DentConfig
from dent.defenses import CONFIGS
from dent.errors import ConfigError
from dent.evaluation import Settings
from dent.evaluation.records.spec import Budget
from dent.paper.defenses import defense_name
from dent.paper.load import load_roles
from dent.paper.scales import Chosen, Role, Scale, choose
from dent.paper.spec import Profile, Table, TableCell
from dent.storage.canonical import digest
from dent.threat import Norm, ThreatModel

STATIC: Final = "static"
WEIGHTS: Final = Path("runs/train")
"""Folder of the weights that `dent train` makes for the paper's models."""
RUNS: Final = "runs"
CONFIGURATIONS: Final = "defenses"
"""Names of the folders in the output folder for runs and for configurations of defenses."""


@dataclass(frozen=True)
class PlannedRun:
    """One evaluation: the static model, and at most one defense of it.

    Attributes:
        model: The evaluated model.
        defense: The defense; None if only the static model is evaluated.
        norm: Norm of the threat model.
        eps: Its radius as written.
        attacks: The attacks, as text for `dent.attacks.make_from`; empty if `suite` is given.
        suite: Budget of the dynamic suite, if it runs instead of `attacks`.
        samples: Number of samples, from the start of the dataset.
        batch_size: Members per batch.
        mix: Share of each batch that is attacked.
    """

    model: Chosen
    defense: DentConfig | None
    norm: Norm
    eps: str
    attacks: tuple[str, ...]
    suite: Budget | None
    samples: int
    batch_size: int
    mix: float | None

    @property
    def defense_name(self) -> str:
        """The name of the defense in the records."""
        return STATIC if self.defense is None else defense_name(self.defense)

    @property
    def attacked_per_batch(self) -> int:
        """The number of attacked members of each batch."""
        return max(1, round((self.mix or 1.0) * self.batch_size))

    @property
    def threat(self) -> ThreatModel:
        """The threat model."""
        return ThreatModel(self.norm, self.eps)

    @property
    def settings(self) -> Settings:
        """The settings of the evaluation."""
        return Settings(n=self.samples, batch_size=self.batch_size, mix=self.mix)

    @property
    def folder(self) -> str:
        """The name of its run folder: readable, and unique to the evaluation."""
        chosen = {"name": self.model.name, "dataset": self.model.dataset}
        if self.model.weights is not None:
            chosen["weights"] = str(self.model.weights)
        values = {**asdict(self), "model": chosen}
        values["defense"] = None if self.defense is None else self.defense.to_dict()
        kind = "suite" if self.suite else "paper"
        words = (self.model.name.rpartition("/")[2], self.norm, self.eps, self.defense_name, kind)
        readable = "-".join(words).replace("/", "_").replace("+", "plus")
        return f"{readable}-{digest(values)[:10]}"

    def configuration(self, out: Path) -> Path | None:
        """Return the path of the defense's JSON file; None if `dent evaluate` knows it by name."""
        if self.defense is None or self.defense_name in CONFIGS:
            return None
        return out / CONFIGURATIONS / f"{self.defense_name}.json"

    def command(self, out: Path) -> str:
        """Return the command that starts or resumes the same evaluation."""
        words = ["dent", "evaluate", "--model", self.model.name]
        if self.model.weights is not None:
            words += ["--weights", str(self.model.weights)]
        words += ["--dataset", self.model.dataset, "--n", str(self.samples)]
        words += ["--batch-size", str(self.batch_size)]
        words += ["--defense", str(self.configuration(out) or self.defense_name)]
        words += ["--norm", self.norm, "--eps", self.eps]
        for attack in self.attacks:
            words += ["--attack", attack]
        if self.suite is not None:
            words += ["--suite", "dynamic", "--budget", self.suite]
        if self.mix is not None:
            words += ["--mix", str(self.mix)]
        return shlex.join([*words, "--out", str(out / RUNS / self.folder)])


@dataclass(frozen=True)
class PlannedCell:
    """A cell at a scale.

    Attributes:
        cell: The cell.
        model: The model that is run for the cell's model; None in a profile.
        run: The evaluation that the cell is read from; None in a profile, or if it is not measured.
        attacks: The run's attacks that count for this cell.
        why: Why the cell is not measured at this scale; empty if it is.
    """

    cell: TableCell
    model: Chosen | None
    run: PlannedRun | None
    attacks: tuple[str, ...]
    why: str = ""

    @property
    def defense_name(self) -> str:
        """The name, in the run's records, of the defense that the cell is about."""
        is_static = self.run is None or _is_static(self.cell.defense)
        return STATIC if is_static else defense_name(self.cell.defense)


@dataclass(frozen=True)
class PaperPlan:
    """A table at a scale.

    Attributes:
        table: The table.
        scale: The scale.
        cells: The planned cells, by `row/column`.
        suites: For each cell on which the dynamic suite runs, that run.
        profile: The profile at this scale, if the table is about computation.
    """

    table: Table
    scale: Scale
    cells: Mapping[str, PlannedCell]
    suites: Mapping[str, PlannedRun]
    profile: Profile | None

    def runs(self) -> tuple[PlannedRun, ...]:
        """Return all evaluations without repetition: those of cells, then those of the suite."""
        of_cells = [cell.run for cell in self.cells.values() if cell.run is not None]
        return tuple(dict.fromkeys([*of_cells, *self.suites.values()]))

    @property
    def profile_folder(self) -> str:
        """The name of the folder of its profile."""
        values: Any = None if self.profile is None else self.profile.model_dump()
        return f"profile-{digest([values, self.profiled])[:10]}"

    @property
    def profiled(self) -> dict[str, dict[str, Any]]:
        """The configurations that are profiled, by column."""
        return {
            key.partition("/")[2]: cell.cell.defense.to_dict()
            for key, cell in self.cells.items()
            if not cell.why
        }


def plan_table(table: Table, scale: Scale, weights: Path = WEIGHTS) -> PaperPlan:
    """Plan a table at a scale. This loads no model and no dataset.

    Args:
        table: The table.
        scale: The scale.
        weights: Folder of weights that `dent train` made.

    Raises:
        UnknownNameError: A model has no known stand-in at this scale.
        ConfigError: A cell names an attack that the scale does not have, or the scale runs the
            suite on a cell that the table does not list for it.
    """
    roles = load_roles()
    changes = scale.of(table.id)
    cells = {}
    for key, cell in table.cells.items():
        reason = ""
        if key.partition("/")[2] in changes.leave_out:
            reason = f"left out at scale {scale.id}"
        cells[key] = _cell(table, scale, cell, roles, weights, reason)
    for key, cell in table.cells.items():
        if cell.from_row is not None and cells[key].run is not None:
            source = cells[f"{cell.from_row}/{key.partition('/')[2]}"]
            cells[key] = replace(cells[key], run=source.run)
    suites = {}
    chosen = table.suite.cells if changes.suite is None else changes.suite
    for key in chosen:
        if key not in table.suite.cells:
            raise ConfigError(f"{table.id}: scale {scale.id} runs the suite for no cell {key}")
        cell, planned = table.cells[key], cells[key]
        if planned.model is not None:
            suites[key] = _suite(scale, cell, planned.model)
    profile = None if table.profile is None else changes.profile.of(table.profile)
    return PaperPlan(table, scale, cells, suites, profile)


def _cell(
    table: Table,
    scale: Scale,
    cell: TableCell,
    roles: Mapping[str, Role],
    weights: Path,
    reason: str,
) -> PlannedCell:
    if table.profile is not None:
        return PlannedCell(cell, None, None, (), reason)
    model = choose(scale, cell.model, roles, weights)
    if cell.attack not in scale.attacks:
        raise ConfigError(f"{table.id}: scale {scale.id} has no attack {cell.attack!r}")
    parts = scale.attacks[cell.attack]
    for part in (cell.through, cell.only):
        if part is not None and part not in parts:
            reason = reason or f"{cell.attack} has no {part} at scale {scale.id}"
    if reason:
        return PlannedCell(cell, model, None, (), reason)
    changes = scale.of(table.id)
    run = PlannedRun(
        model=model,
        defense=None if _is_static(cell.defense) else cell.defense,
        norm=cell.norm,
        eps=cell.eps,
        attacks=tuple(parts.values()),
        suite=None,
        samples=changes.samples or scale.samples,
        batch_size=cell.batch_size or changes.batch_size or scale.batch_size,
        mix=cell.mix,
    )
    return PlannedCell(cell, model, run, _counted(cell, parts))


def _suite(scale: Scale, cell: TableCell, model: Chosen) -> PlannedRun:
    return PlannedRun(
        model=model,
        defense=cell.defense,
        norm=cell.norm,
        eps=cell.eps,
        attacks=(),
        suite=scale.suite.budget,
        samples=scale.suite.samples,
        batch_size=scale.suite.batch_size,
        mix=None,
    )


def _counted(cell: TableCell, parts: Mapping[str, str]) -> tuple[str, ...]:
    """Return the attacks that count: those up to `through`, the one that is `only`, or all."""
    if cell.only is not None:
        return (parts[cell.only],)
    names = list(parts)
    last = len(names) if cell.through is None else names.index(cell.through) + 1
    return tuple(parts[name] for name in names[:last])


def _is_static(config: DentConfig) -> bool:
    return config == CONFIGS[STATIC]
