"""Describe the software and machine of a session. Environment variables are never recorded."""

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import torch

from dent.evaluation.records.schema import Session
from dent.support.printable import encodable

_PACKAGES: Final = (
    "torch-dent",
    "torch",
    "torchvision",
    "pyautoattack",
    "numpy",
    "pillow",
    "safetensors",
)


def new_session(device: torch.device) -> Session:
    """Return the description of this process at the start of its work on a run."""
    return Session(
        versions={"python": platform.python_version()} | _versions(),
        platform=encodable(platform.platform()),
        device=_device(device),
        threads=torch.get_num_threads(),
        processors=os.cpu_count() or 0,
        started=now(),
    )


def same_platform(sessions: Iterable[Session], device: torch.device, *, bit_exact: bool) -> bool:
    """Return whether this process computes as all sessions did, so that results must be equal.

    There are two rules, because there are two kinds of results:

    - Recorded images, submitted again, must get the recorded predictions. For this, the versions,
      the device and the number of threads must be equal.
    - An attack that runs again must find the recorded images, bit for bit (`bit_exact`). It carries
      any rounding through all of its steps, so the number of processors and the platform must be
      equal as well.

    Args:
        sessions: The sessions that made the records.
        device: The device of this process.
        bit_exact: Whether the second rule decides.
    """
    current = new_session(device)
    names = ["versions", "device", "threads"]
    names += ["processors", "platform"] if bit_exact else []
    return all(
        getattr(session, name) == getattr(current, name) for session in sessions for name in names
    )


def now() -> str:
    """Return the UTC time to the microsecond, so that sessions of a run differ in their start."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def later(moment: str) -> str:
    """Return the time one microsecond after a time that `now` returned."""
    following = datetime.fromisoformat(moment) + timedelta(microseconds=1)
    return following.isoformat(timespec="microseconds")


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a source tree
            versions[package] = "unknown"
    return versions


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return encodable(f"cuda: {torch.cuda.get_device_name(device)}")
    return encodable(f"{device.type}: {platform.processor() or platform.machine()}")
