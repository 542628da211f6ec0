"""Attacks that wait, meet or raise, and helpers to kill processes and compare runs."""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from dent.attacks import Attack, Outcome, Querier, Queries
from dent.evaluation import load_run
from dent.evaluation.records.journal import JOURNAL
from dent.storage.canonical import without_timing
from dent.threat import Norm, ThreatModel
from tests.evaluation.subjects import Push


class _Toy(Attack):
    """Base of attacks that end with a `Push`."""

    def settings(self, norm: Norm = "linf") -> dict[str, Any]:
        del norm
        return {}

    def queries(self, num_classes: int, norm: Norm = "linf") -> Queries:
        return Push().queries(num_classes, norm)


@final
@dataclass(frozen=True)
class SlowPush(_Toy):
    """Sleeps before a `Push`, and writes its Ray node to a file named by its process id."""

    folder: Path
    seconds: float = 0.1

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        ray = sys.modules.get("ray")
        inside = ray is not None and ray.is_initialized()
        node = ray.get_runtime_context().get_node_id() if inside else "none"
        (self.folder / str(os.getpid())).write_text(node)
        time.sleep(self.seconds)
        return Push().run(target, threat, seed)


@final
@dataclass(frozen=True)
class Meeting(_Toy):
    """Waits until `size` processes run it, except in the process that made it."""

    folder: Path
    size: int
    home: int = field(default_factory=os.getpid)

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        if os.getpid() != self.home:
            (self.folder / str(os.getpid())).touch()
            until = time.monotonic() + 120
            while len(list(self.folder.iterdir())) < self.size:
                assert time.monotonic() < until, "the others did not come"
                time.sleep(0.01)
        return Push().run(target, threat, seed)


@final
@dataclass(frozen=True)
class Refusing(_Toy):
    """Raises an ArithmeticError, and appends a character to a file for each call."""

    asked: Path

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        del target, threat, seed
        with self.asked.open("a") as file:
            file.write("x")
        raise ArithmeticError("this attack cannot count")


def kill(pid: int) -> None:
    """End a process with SIGKILL, which cannot be caught."""
    os.kill(pid, signal.SIGKILL)


def contents(folder: Path) -> dict[str, Any]:
    """Check a finished run, and return its content without times, sessions and the record order."""
    run = load_run(folder)
    lines = (folder / JOURNAL).read_text().splitlines()
    records = [without_timing(json.loads(line)["record"]) for line in lines]
    keys = [record.key for record in run.records.values()]
    assert len(keys) == len(set(keys)) == run.run.units, "nothing lost, nothing twice"
    result = without_timing(json.loads((folder / "result.json").read_text()))
    assert result["status"] == run.run.status == "complete"
    del result["sessions"]
    assert not list(folder.rglob(".tmp-*"))
    return {
        "records": dict(zip(keys, records, strict=True)),
        "tensors": {file.name: file.read_bytes() for file in (folder / "adversarial").iterdir()},
        "plan": (folder / "plan.json").read_bytes(),
        "identity": run.run.identity,
        "result": result,
    }
