"""Wheels for a machine without a network: fetch them here, carry the folder, install them there."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent.parent / ".wheels"
"""The folder of the wheels, which git ignores."""
LACKING: Final = (
    "pyautoattack",
    "pytorch_optimizer",
    "pydantic",
    "pydantic_core",
    "typing_inspection",
    "annotated_types",
)
"""The packages that `dent` and the part `tests` need beyond torch, torchvision, timm, accelerate,
hypothesis, pytest, scipy, matplotlib, typer, rich, safetensors, filelock and jinja2."""
PYTHON: Final = "3.12"
_PLATFORMS: Final = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_LARGEST: Final = 10_000_000
"""Largest size of a file in a wheel, in bytes. Larger files are data that no module imports."""


def collect(folder: Path = FOLDER) -> list[Path]:
    """Download wheels of the versions that are installed here, and return their paths."""
    from importlib.metadata import version  # noqa: PLC0415 - only where they are installed

    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    command += [word for platform in _PLATFORMS for word in ("--platform", platform)]
    wanted = [f"{name}=={version(name)}" for name in LACKING]
    for old in folder.glob("*.whl"):
        old.unlink()
    subprocess.run([*command, "--dest", str(folder), *wanted], check=True)  # noqa: S603
    found = sorted(folder.glob("*.whl"))
    for wheel in found:
        lighten(wheel)
    return found


def lighten(wheel: Path, largest: int = _LARGEST) -> None:
    """Remove the files of more than `largest` bytes from a wheel."""
    with zipfile.ZipFile(wheel) as before:
        if all(each.file_size <= largest for each in before.infolist()):
            return
        part = wheel.with_suffix(".part")
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as after:
            for each in before.infolist():
                if each.file_size <= largest:
                    after.writestr(each, before.read(each))
    part.replace(wheel)


def install(folder: Path = FOLDER) -> Path | None:
    """Unpack the wheels into a new folder, without a network.

    Returns:
        The folder for PYTHONPATH; None if there are no wheels, or they are for another Python.
    """
    found = sorted(map(str, folder.glob("*.whl")))
    if not found:
        return None
    if "{}.{}".format(*sys.version_info) != PYTHON:
        print(f"{folder} is left out: its wheels are for Python {PYTHON}", flush=True)
        return None
    site = Path(tempfile.mkdtemp(prefix="dent-wheels-"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-compile", "--no-cache-dir", "--upgrade", "--target", str(site)]
    subprocess.run([*command, *found], check=True)  # noqa: S603
    return site
