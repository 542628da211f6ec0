from pathlib import Path

import pytest

from dent.data import data_root
from dent.data.cifar10 import CIFAR10

# Looked up before any test points DENT_DATA elsewhere.
REAL_ROOT = data_root()


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep every test away from the data of whoever runs it."""
    monkeypatch.setenv("DENT_DATA", str(tmp_path / "data"))


@pytest.fixture
def real_root() -> Path:
    """The folder where the real CIFAR-10 lies; skips the test where it does not."""
    there = [CIFAR10.cache_path(REAL_ROOT, split).is_file() for split in CIFAR10.splits]
    if not (all(there) or (REAL_ROOT / CIFAR10.folder.base).is_dir()):
        pytest.skip(f"the full CIFAR-10 is not under {REAL_ROOT}: run `dent data cifar10`")
    return REAL_ROOT
