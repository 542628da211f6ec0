"""What the parts of `make gpu` share: the device, the deadline and the record."""

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
    """A part of `make gpu` to run.

    Attributes:
        part: Name of the part.
        device: Device on which it computes.
        out: The folder of all parts.
        deadline: Time at which it must end, by `time.monotonic`.
        small: Whether it runs in tiny form, which measures nothing.
        done: Its record so far, which `keep` writes to `out/PART.json`.
    """

    part: str
    device: torch.device
    out: Path
    deadline: float
    small: bool
    done: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file of the record."""
        return self.out / f"{self.part}.json"

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - time.monotonic()

    def keep(self, **found: Any) -> None:
        """Add to the record, and write it to its file."""
        self.done.update(found)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.done, indent=1) + "\n")
        part.replace(self.path)

    def settled(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def machine(device: torch.device) -> dict[str, Any]:
    """Return what a part ran on: the device, its driver, versions, and whether TF32 is allowed."""
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
