from pathlib import Path

import pytest

from dent.data import data_root
from dent.data.cifar10 import CIFAR10

# Evaluated before any test changes DENT_DATA.
REAL_ROOT = data_root()


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep every test away from the user's own data."""
    monkeypatch.setenv("DENT_DATA", str(tmp_path / "data"))


@pytest.fixture
def real_root() -> Path:
    """Return the folder of the real CIFAR-10, or skip the test if it is not there."""
    there = [CIFAR10.cache_path(REAL_ROOT, split).is_file() for split in CIFAR10.splits]
    if not (all(there) or (REAL_ROOT / CIFAR10.folder.base).is_dir()):
        pytest.skip(f"the full CIFAR-10 is not under {REAL_ROOT}: run `dent data cifar10`")
    return REAL_ROOT
