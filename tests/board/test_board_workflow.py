"""Run the steps of the board's workflow on small repositories."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

WORKFLOW = Path(__file__).parents[2] / ".github" / "workflows" / "board.yml"
LINES = "board/t/it/headline/challenges.jsonl"
FILES = {
    "board/t/it/row.json": "{}",
    "board/t/it/headline/result.json": "{}",
    LINES: "one\ntwo\n",
}


def script(name: str) -> str:
    """Return the commands of a step."""
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["check"]["steps"]
    (found,) = (step["run"] for step in steps if step.get("name") == name)
    return str(found)


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=us", "-c", "user.email=us@example.org")
    ran = subprocess.run(
        ("git", *identity, *words), cwd=folder, check=True, capture_output=True, text=True
    )
    return ran.stdout.strip()


def write(folder: Path, files: dict[str, str | None]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)


def run(folder: Path, step: str, changes: dict[str, str | None]) -> tuple[int, str]:
    """Commit changes to a repository with one row, and run a step with a `dent` that only prints.

    Returns:
        The exit status and the output.
    """
    git(folder, "init", "-q")
    write(folder, dict(FILES))
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "base")
    base = git(folder, "rev-parse", "HEAD")
    write(folder, changes)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "changes")
    tools = folder / "tools"
    tools.mkdir()
    (tools / "dent").write_text('#!/bin/sh\necho "dent $*"\n')
    (tools / "dent").chmod(0o755)
    ran = subprocess.run(
        ("bash", "-eo", "pipefail", "-c", script(step)),
        cwd=folder,
        env={"PATH": f"{tools}:{os.environ['PATH']}", "BASE": base},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ("one\ntwo\nthree\n", 0),
        ("two\n", 1),
        ("one\nTWO\n", 1),
        ("two\none\n", 1),
        ("", 1),
        (None, 1),
    ],
)
def test_lines_of_challenges_may_only_be_added(
    tmp_path: Path, lines: str | None, code: int
) -> None:
    found, said = run(tmp_path, "Challenges are permanent", {LINES: lines})
    assert found == code, said
    assert ("lines may only be added at the end" in said) == bool(code)


def test_first_challenges_of_a_row_may_be_added(tmp_path: Path) -> None:
    new = {LINES.replace("it", "other"): "one\n"}
    assert run(tmp_path, "Challenges are permanent", dict(new)) == (0, "")


def test_row_of_which_only_the_challenges_were_deleted_is_checked(tmp_path: Path) -> None:
    found, said = run(tmp_path, "Check every row that changed", {LINES: None})
    assert (found, "dent board check board/t/it --records-only" in said) == (0, True)


def test_moved_row_is_a_deleted_row(tmp_path: Path) -> None:
    moved = {"board/t/it/row.json": None, "board/t/new/row.json": "{}"}
    assert run(tmp_path, "Rows are never deleted", dict(moved))[0] == 1


@pytest.mark.parametrize(
    ("name", "code"), [("report.html", 1), ("x.HTM", 1), ("submission.json", 0)]
)
def test_committed_report_is_refused(tmp_path: Path, name: str, code: int) -> None:
    step = "Reports are written from the records, and never committed"
    assert run(tmp_path, step, {f"board/t/it/headline/{name}": "{}"})[0] == code


def test_every_change_of_trust_json_is_pointed_out(tmp_path: Path) -> None:
    """The page shows what it says, and anybody can write one into a pull request."""
    step = "Point out every change of trust.json"
    code, said = run(tmp_path, step, {"board/t/it/trust.json": "{}", "board/t/my trust.json": ""})
    assert code == 0
    assert said.count("::warning") == 1
    assert "::warning file=board/t/it/trust.json::Merge this only if" in said


def test_pull_request_without_trust_json_is_not_warned_of(tmp_path: Path) -> None:
    step = "Point out every change of trust.json"
    assert run(tmp_path, step, {LINES: "one\ntwo\nthree\n"}) == (0, "")
