"""Checks of the stored images of a run without its model."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dent.evaluation import Settings, evaluate, verify
from dent.evaluation.verification.outcome import Check
from tests.cli.here import dent
from tests.evaluation.subjects import SMALL, make_subject

DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "junk": lambda path: path.write_bytes(b"junk"),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": lambda path: path.unlink(),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "run"
    evaluate(make_subject(), SMALL, out=path)
    return path


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def tensors(folder: Path) -> Check:
    return next(check for check in verify(folder).checks if check.name == "tensors")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_image_fails_the_check_of_the_records(damage: str, folder: Path) -> None:
    image = sorted((folder / "adversarial").iterdir())[1]
    DAMAGES[damage](image)
    ran = dent("verify", str(folder), "--records-only")
    assert ran.code == 1
    assert f"tensors: {image}" in ran.out


def test_every_stored_image_is_compared_with_its_digest(folder: Path) -> None:
    check = tensors(folder)
    assert (check.state, check.problems) == ("passed", ())
    assert check.looked_at == len(list((folder / "adversarial").iterdir()))
    names = [check.name for check in verify(folder).checks]
    assert len(names) == len(set(names))


def test_a_run_without_images_is_incomplete(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "adversarial")
    assert tensors(folder).problems == ("the folder has no images",)
    assert verify(folder).status == "incomplete"
    settings = Settings(n=20, batch_size=8, tensors="drop")
    evaluate(make_subject(), settings, out=tmp_path / "dropped")
    assert tensors(tmp_path / "dropped").state == "not-run"
    assert "were not kept" in tensors(tmp_path / "dropped").problems[0]
