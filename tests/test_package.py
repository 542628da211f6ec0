"""The built packages are complete and reproducible, with notices and tested versions."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked() -> list[str]:
    """Return all files under version control; skip the test in an unpacked archive."""
    asked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if asked.returncode:
        pytest.skip("these sources are not under version control")
    return [name for name in asked.stdout.splitlines() if (ROOT / name).exists()]


def test_every_file_under_version_control_is_in_the_manifest() -> None:
    words = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines()]
    grafted = {each for line in words if line[0] == "graft" for each in line[1:]}
    included = {each for line in words if line[0] == "include" for each in line[1:]}
    by_itself = {"README.md", "pyproject.toml", *PROJECT["license-files"]}
    missing = {
        name
        for name in tracked()
        if name.partition("/")[0] not in grafted and name not in included | by_itself
    }
    assert not missing


def test_the_notice_names_all_third_party_files() -> None:
    notice = (ROOT / "NOTICE").read_text()
    bundled = sorted((ROOT / "src" / "dent" / "data" / "bundled").iterdir())
    assert len(bundled) == 2
    for path in bundled:
        assert path.relative_to(ROOT).as_posix() in notice
    for pattern in ("models/shipped/*.safetensors", "models/tables/*.json", "paper/tables/*.toml"):
        assert list((ROOT / "src" / "dent").glob(pattern))
        assert f"src/dent/{pattern}" in notice
    assert "NOTICE" in PROJECT["license-files"]


def test_constraints_cover_and_satisfy_all_declared_dependencies() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    groups = PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()
    asked = [Requirement(text) for group in groups for text in group]
    assert len(asked) > 30
    for each in asked:
        name = canonicalize_name(each.name)
        if name != "torch-dent":
            assert name in tested, f"run tools/constraints.py: {name} is not in constraints.txt"
            assert each.specifier.contains(tested[name]), each


def test_the_extra_all_is_every_extra_for_users() -> None:
    extras = PROJECT["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.extras == extras.keys() - {"all", "dev", "docs"}
    (developing,) = (one for one in map(Requirement, extras["dev"]) if one.name == "torch-dent")
    assert developing.extras == {"all", "docs"}
    for file in ("Dockerfile", "constraints.txt"):
        assert "[all]" in (ROOT / file).read_text()


def build(where: Path, sources: Path) -> tuple[Path, Path]:
    """Build the source archive and, from it, the wheel."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(where)]
    # A fixed timestamp, so that the archives do not depend on the time of the build.
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run(command, cwd=sources, env=environment, check=True, capture_output=True)
    (archive,), (wheel,) = where.glob("*.tar.gz"), where.glob("*.whl")
    return archive, wheel


@pytest.mark.slow
def test_source_archive_is_complete_and_wheel_is_reproducible(tmp_path: Path) -> None:
    names = tracked()
    wheels = []
    for index in range(2):
        sources = tmp_path / f"sources-{index}"
        for name in names:
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, sources / name)
        archive, wheel = build(tmp_path / f"dist-{index}", sources)
        wheels.append(wheel.read_bytes())
    assert wheels[0] == wheels[1]
    with tarfile.open(archive) as tar:
        inside = {member.name.partition("/")[2] for member in tar if member.isfile()}
    made = {"PKG-INFO", "setup.cfg"}
    assert {n for n in inside - made if not n.startswith("src/torch_dent.egg-info")} == set(names)
    with zipfile.ZipFile(wheel) as whole:
        held = set(whole.namelist())
        assert any(name.endswith("licenses/NOTICE") for name in held)
    packaged = {name.removeprefix("src/") for name in names if name.startswith("src/")}
    assert {name for name in held if not name.partition("/")[0].endswith(".dist-info")} == packaged
    unpacked = tmp_path / "unpacked"
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, filter="data")
    (root,) = unpacked.iterdir()
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-2000:]
