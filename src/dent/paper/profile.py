"""Measure time and operations of a prediction by steps (Table 14), in a separate record."""

from pathlib import Path
from typing import Any, Final, Literal

import torch
import torchvision
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dent.config import DentConfig
from dent.defenses.dent import Dent
from dent.errors import ConfigError
from dent.evaluation.records.provenance import new_session
from dent.evaluation.records.record_file import dump, read_record
from dent.evaluation.records.schema import Session
from dent.evaluation.submission.submission import clock
from dent.paper.planning import PaperPlan
from dent.paper.spec import Profile
from dent.storage.canonical import Record
from dent.storage.disk import write_atomically, writing

PROFILE: Final = "profile.json"
_CPU: Final = torch.device("cpu")


class ProfileRecord(Record):
    """`profile.json`: the measurements, round by round."""

    schema_version: Literal[1] = 1
    profile: dict[str, Any]
    """The `Profile` at its scale."""
    configurations: dict[str, dict[str, Any]]
    """The defense of each column."""
    flops: dict[str, int]
    """For each column, the floating-point operations of one prediction of the batch, counted by
    torch.utils.flop_counter. A multiply-add counts as two."""
    seconds: tuple[dict[str, float], ...]
    """For each round and column, the seconds that one prediction of the batch took."""
    session: Session
    """The session that began the measurement."""


def run_profile(plan: PaperPlan, path: Path, device: torch.device = _CPU) -> ProfileRecord:
    """Measure the rounds that are missing. In each round, all columns take turns.

    Args:
        plan: A table with a profile.
        path: The folder of the record. The same call resumes where it stopped.
        device: The device to run on.

    Raises:
        ConfigError: The table has no profile, or the folder contains a different one.
        RecordError: The folder cannot be read or written to.
    """
    profile = plan.profile
    if profile is None:
        raise ConfigError(f"{plan.table.id} is not a table of computation")
    record = read_profile(path)
    if record is not None and record.configurations != plan.profiled:
        raise ConfigError(f"{path} has another profile: choose another folder")
    if record is not None and len(record.seconds) >= profile.rounds:
        return record
    defenses, x = _subjects(plan, profile, device)
    if record is not None:  # not timed: the first prediction includes a trial
        for defense in defenses.values():
            defense(x)
    else:
        record = ProfileRecord(
            profile=profile.model_dump(),
            configurations=plan.profiled,
            flops={column: count_flops(defense, x) for column, defense in defenses.items()},
            seconds=(),
            session=new_session(x.device),
        )
    while len(record.seconds) < profile.rounds:
        round_ = {column: _seconds(defense, x) for column, defense in defenses.items()}
        record = record.model_copy(update={"seconds": (*record.seconds, round_)})
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / PROFILE, dump(record))
    return record


def read_profile(path: Path) -> ProfileRecord | None:
    """Read the profile of a folder; None if nothing was measured yet.

    Raises:
        RecordError: The profile is damaged.
    """
    return read_record(path / PROFILE, ProfileRecord) if (path / PROFILE).exists() else None


def count_flops(defense: Dent, x: Tensor) -> int:
    """Return the floating-point operations of one prediction, in forwards and backwards.

    They are those of matrix products and convolutions, which torch.utils.flop_counter counts. The
    trial that a defense makes with its first prediction is not included.
    """
    defense(x)
    with FlopCounterMode(display=False) as counter:
        defense(x)
    return int(counter.get_total_flops())


def _subjects(
    plan: PaperPlan, profile: Profile, device: torch.device
) -> tuple[dict[str, Dent], Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        zoo: Any = torchvision.models
        model = zoo.get_model(profile.model, weights=None, num_classes=profile.classes)
        x = torch.rand(profile.batch_size, 3, profile.size, profile.size).to(device)
    model.to(device).eval()
    defenses = {
        column: Dent(model, DentConfig.from_dict(values))
        for column, values in plan.profiled.items()
    }
    return defenses, x


def _seconds(defense: Dent, x: Tensor) -> float:
    start = clock(x.device)
    defense(x)
    return clock(x.device) - start
