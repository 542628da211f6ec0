"""What the parts of `make gpu` share: where they run, until when, and what they keep."""

import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dent.evaluation.records.provenance import new_session


@dataclass(frozen=True)
class Job:
    """A part to be run.

    Attributes:
        part: Its name.
        device: Where it computes.
        out: The folder of all parts.
        deadline: When it has to be done, by `time.monotonic`.
        small: In tiny form, which measures nothing.
        done: What of it is done, written to `out/PART.json` by `keep`.
    """

    part: str
    device: torch.device
    out: Path
    deadline: float
    small: bool
    done: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The part's record."""
        return self.out / f"{self.part}.json"

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def keep(self, **found: Any) -> None:
        """Add to the record, and write it."""
        self.done.update(found)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.done, indent=1) + "\n")
        part.replace(self.path)

    def settled(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def machine(device: torch.device) -> dict[str, Any]:
    """What it ran on: device, driver, versions, and how it multiplies."""
    session = new_session(device)
    return {
        "device": session.device,
        "driver": _driver() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "platform": session.platform,
        "versions": dict(session.versions),
        "tf32": {
            "matmul": torch.backends.cuda.matmul.allow_tf32,
            "convolutions": torch.backends.cudnn.allow_tf32,
        },
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return ran.stdout.strip()
