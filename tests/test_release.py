"""The files and workflows of a release are consistent with each other."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from dent.support.extras import installing
from tools import badges, release

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = ROOT / ".github" / "workflows"


def workflow(name: str) -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load((WORKFLOWS / name).read_text())
    return loaded


def test_all_files_name_the_same_version() -> None:
    release.check(None)
    assert len(release.notes()) > 1000
    with pytest.raises(SystemExit, match=r"the tag is v9.*, expected v"):
        release.check("v9")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("CITATION.cff", "version: 1.0\n", "CITATION.cff: expected version: 3.1.4"),
        ("CHANGELOG.md", "# Changelog\n\n## 3.1.4\n\n## 3.1.3\n\nx\n", "expected a section"),
        (
            "CHANGELOG.md",
            "# Changelog\n\n## 3.1.4 (unreleased)\n\nx\n",
            "expected the date of 3.1.4",
        ),
        ("CHANGELOG.md", "# Changelog\n\n## 3.1.40\n\nx\n", "expected a section"),
    ],
)
def test_inconsistent_files_stop_a_release(tmp_path: Path, file: str, text: str, said: str) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "3.1.4"\n')
    (tmp_path / "CITATION.cff").write_text("version: 3.1.4\n")
    (tmp_path / "CHANGELOG.md").write_text("## 3.1.4 - 2026\n\nNew.\n\n## 3.1.3\n\nOld.\n")
    release.check("v3.1.4", tmp_path)
    assert release.notes(tmp_path) == "New.\n"
    (tmp_path / file).write_text(text)
    with pytest.raises(SystemExit, match=said):
        release.check("v3.1.4", tmp_path)


def test_zenodo_metadata_matches_that_of_the_package() -> None:
    described = json.loads((ROOT / ".zenodo.json").read_text())
    assert described["title"] == PROJECT["name"]
    assert described["license"] == PROJECT["license"]
    assert described["keywords"] == PROJECT["keywords"]
    assert PROJECT["description"].rstrip(".") == described["description"].rstrip(".")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert [one["name"] for one in described["creators"]] == [
        one["name"] for one in cited["authors"]
    ]


def test_workflows_refer_to_jobs_and_files_that_exist() -> None:
    names = sorted(path.name for path in WORKFLOWS.glob("*.yml"))
    assert {"ci.yml", "release.yml"} <= set(names)
    for name in names:
        jobs = workflow(name)["jobs"]
        for job in jobs.values():
            needed = job.get("needs", [])
            assert ({needed} if isinstance(needed, str) else set(needed)) <= jobs.keys()
            if "uses" in job:
                assert (ROOT / job["uses"]).is_file()
        for script in re.findall(r"(?:python|\S/python) (\S+\.py)", (WORKFLOWS / name).read_text()):
            assert (ROOT / script).is_file(), f"{name} runs {script}"


def test_publishing_needs_the_checks_and_uses_no_secret() -> None:
    text = (WORKFLOWS / "release.yml").read_text()
    jobs = workflow("release.yml")["jobs"]
    assert {"check", "build", "install", "container"} <= set(jobs["publish"]["needs"])
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in text
    assert jobs["publish"]["if"] == "github.ref_type == 'tag'"
    assert "workflow_call" in workflow("ci.yml")[True]  # YAML reads the key `on` as True


def test_slow_tests_run_weekly_by_hand_and_for_a_release() -> None:
    triggers = workflow("ci.yml")[True]
    assert {"schedule", "workflow_dispatch", "workflow_call"} <= set(triggers)
    slow = workflow("ci.yml")["jobs"]["slow"]
    assert {"run": "make test-slow"} in slow["steps"]
    for when in ("'schedule'", "'workflow_dispatch'", "'refs/tags/'"):
        assert when in slow["if"]


def test_ci_covers_the_declared_python_and_dependency_versions() -> None:
    jobs = workflow("ci.yml")["jobs"]
    tested = jobs["check"]["strategy"]["matrix"]["python"]
    said = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert tested == said
    assert PROJECT["requires-python"] == f">={said[0]}"
    oldest = {text.partition(">=")[0]: text.partition(">=")[2] for text in PROJECT["dependencies"]}
    lowest = str(jobs["lowest"]["steps"])
    for package in ("torch", "torchvision"):
        assert f"{package}=={oldest[package]}." in lowest
    systems = jobs["smoke"]["strategy"]["matrix"]["os"]
    assert systems == ["macos-latest", "windows-latest"]


def test_badges_are_up_to_date() -> None:
    """To update them, run `python tools/badges.py`."""
    made = badges.badges()
    assert {path.name: path.read_text() for path in badges.FOLDER.iterdir()} == made
    assert f">{PROJECT['version']}<" in made["version.svg"]
    readme = (ROOT / "README.md").read_text()
    shown = re.findall(r"\]\(docs/figures/badges/([\w.]+)\)", readme)
    assert sorted(shown) == sorted(made)


@pytest.mark.parametrize(
    ("requirements", "again", "command"),
    [
        (("torch-dent[zoo]",), False, 'pip install "torch-dent[zoo]"'),
        (("s3fs",), False, "pip install s3fs"),
        (("a", "b>=2"), True, 'pip install --force-reinstall --no-deps a "b>=2"'),
    ],
)
def test_installing_returns_the_pip_command(
    requirements: tuple[str, ...], again: bool, command: str
) -> None:
    assert installing(*requirements, again=again) == command


def test_installing_an_extra_in_a_clone_keeps_the_installed_package() -> None:
    """`pip install "torch-dent[EXTRA]"` works in a clone: pip keeps the installed package."""
    ran = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "torch-dent[train]"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Would install" not in ran.stdout


def test_all_messages_and_pages_install_extras_with_one_command() -> None:
    """The command is `pip install "torch-dent[EXTRA]"` (`".[EXTRA]"` in a clone), and it exists."""
    found = []
    for folder, pattern in (("src", "*.py"), ("docs", "*.md"), ("examples", "*.py"), (".", "*.md")):
        files = (ROOT / folder).glob(pattern) if folder == "." else (ROOT / folder).rglob(pattern)
        for path in files:
            text = path.read_text(encoding="utf-8")
            for command in re.findall(r"pip install [^\n`]*\[[^\n`]*", text):
                extras = re.search(r'"(?:torch-dent|\.)\[([\w,-]+)\]"', command)
                assert extras is not None, f"{path.relative_to(ROOT)}: {command}"
                found += extras[1].split(",")
    assert set(found) - {"EXTRA"} <= PROJECT["optional-dependencies"].keys()
    assert len(found) > 5
