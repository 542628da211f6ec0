"""Test the container that runs a stranger's code, and the commands that start it.

There is no docker in the tests: they read the files, and run the workflow's scripts with tools that
only write down how they were called.
"""

import json
import re
import shlex
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.here import commands

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "board.yml"
SEALED = "--rm --network none --read-only --tmpfs /tmp"
ROW = "board/cifar10-linf-8_255-v1/mine"
SHA256 = "0" * 64
PRINTS = '#!/bin/sh\nprintf "%s\\n" "{name} $*" >> "$CALLS"\n'


def workflow() -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text())
    return loaded


def complete() -> dict[str, Any]:
    job: dict[str, Any] = workflow()["jobs"]["complete"]
    return job


def docker_runs(text: str) -> Iterator[list[str]]:
    """Yield the words of every `docker run` in shell commands."""
    for line in text.replace("\\\n", " ").splitlines():
        command = line.strip().removesuffix(" || status=$?")
        if command.startswith("docker run "):
            yield shlex.split(command)


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """Split a `docker run` at its image, which all are called `dent-board...`."""
    (place,) = (i for i, word in enumerate(words) if word.startswith("dent-board"))
    return words[2:place], words[place + 1 :]


def refuse_unknown_options(words: list[str]) -> None:
    """Check that `dent board` has the command and every option."""
    command, *others = words
    known = {name for option in commands()[f"board {command}"].params for name in option.opts}
    assert {word for word in others if word.startswith("--")} <= known


def test_container_has_the_wheel_runs_as_a_user_and_finds_code_and_data() -> None:
    text = (ROOT / "board" / "Dockerfile").read_text()
    lines = text.replace("\\\n", " ").splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and line[0] != "#"]
    by_name = dict(reversed(instructions))  # the first of a name
    users = next(argument for name, argument in instructions[::-1] if name == "RUN")
    ci = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    python = re.fullmatch(r"python:([\d.]+)-slim", by_name["FROM"])
    assert python is not None
    assert python[1] in ci["jobs"]["check"]["strategy"]["matrix"]["python"]
    allowed = (ROOT / "board" / "Dockerfile.dockerignore").read_text().split()
    assert allowed[0] == "*"
    for source in by_name["COPY"].split()[:-1]:
        assert f"!{source.partition('/')[0]}" in allowed
    assert "-c /tmp/constraints.txt /tmp/torch_dent-*.whl" in by_name["RUN"]
    assert (ROOT / "constraints.txt").is_file()
    assert f"--uid 10001 {by_name['USER']}" in users
    names = [name for name, _ in instructions]
    assert "RUN" not in names[names.index("USER") :]
    environment = dict(word.split("=") for word in by_name["ENV"].split())
    assert environment["DENT_DATA"] == "/data"
    assert environment["MPLCONFIGDIR"] == SEALED.rsplit(maxsplit=1)[-1], (
        "the only folder that can be written to"
    )
    assert json.loads(by_name["ENTRYPOINT"]) == ["dent", "board"]


def test_code_in_the_container_cannot_replace_modules_of_python_or_of_the_checker(
    tmp_path: Path,
) -> None:
    """A clone with a `dent` or a `json` of its own would otherwise say that its row is verified."""
    text = (ROOT / "board" / "Dockerfile").read_text()
    (setup,) = re.findall(r"RUN (site=.*?) && useradd", text.replace("\\\n", " "))
    environment, code = tmp_path / "environment", tmp_path / "code"
    venv.create(environment, with_pip=False)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dent").mkdir()
    (site / "dent" / "__init__.py").touch()
    code.mkdir()
    for name in ("dent", "json", "sitecustomize", "usercustomize"):
        (code / f"{name}.py").write_text("print('replaced')")
    (code / "mine.py").write_text("print('found')")
    python = environment / "bin" / "python"
    path = {"PATH": f"{python.parent}:/usr/bin:/bin"}
    subprocess.run(
        ["sh", "-ec", setup.replace("echo /code", f"echo {code}")],
        env=path,
        check=True,
        cwd=tmp_path,
    )
    ran = subprocess.run(
        [python, "-c", "import dent, json, mine"],
        env=path,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert ran.stdout == "found\n"
    assert "PYTHONPATH" not in text


def test_documented_containers_have_no_network_and_only_known_options() -> None:
    runs = [split(words) for words in docker_runs((ROOT / "docs" / "board.md").read_text())]
    assert [inside[0] for _, inside in runs] == ["run", "check"]
    for outside, inside in runs:
        assert " ".join(outside).startswith(SEALED)
        refuse_unknown_options(inside)
        mounts = [word.rsplit(":", 1) for word in outside if ":/" in word]
        writable = [mount for mount in mounts if mount[-1] != "ro"]
        assert writable == ([] if inside[0] == "check" else [["$PWD/rows", "/rows"]])
        assert {"/code", "/data"} <= {mount[0].rpartition(":")[2] for mount in mounts}
    _, run = runs[0]
    assert run[run.index("--out") + 1].startswith("/rows/")


def test_complete_check_is_started_by_hand_and_holds_no_secret() -> None:
    loaded = workflow()
    triggers, jobs = loaded[True], loaded["jobs"]  # YAML reads the key `on` as True
    assert triggers.keys() == {"pull_request", "workflow_dispatch"}
    asked = triggers["workflow_dispatch"]["inputs"]
    assert {"row", "images", "nonce", "reattack", "ref"} == asked.keys()
    assert {name for name, each in asked.items() if each.get("required")} == {
        "row",
        "images",
        "nonce",
    }
    assert {name: job["if"] for name, job in jobs.items()} == {
        "check": "github.event_name == 'pull_request'",
        "complete": "github.event_name == 'workflow_dispatch'",
    }
    assert loaded["permissions"] == {"contents": "read"}
    assert "permissions" not in complete()
    assert "secrets." not in WORKFLOW.read_text()
    scripts = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    assert not any("${{" in script for script in scripts), "an input could be read as a command"
    own, rows = (step["with"] for step in complete()["steps"] if "checkout" in step.get("uses", ""))
    assert (own.get("ref"), rows["path"], rows["sparse-checkout"]) == (None, "submitted", "board")
    assert {own["persist-credentials"], rows["persist-credentials"]} == {False}


def scripts(folder: Path, row: str, submission: dict[str, Any]) -> tuple[int, str]:
    """Run all scripts of the job on a row, with tools that only write down how they were called.

    Returns:
        The exit status of the first script that failed, otherwise 0; and all calls.
    """
    place = folder / "submitted" / ROW
    place.mkdir(parents=True)
    (place / "submission.json").write_text(json.dumps(submission))
    tools, calls = folder / "tools", folder / "calls"
    tools.mkdir()
    calls.touch()
    for name in ("docker", "git", "curl", "pip", "python", "sha256sum"):
        (tools / name).write_text(PRINTS.format(name=name))
    # What the scripts ask of jq: a field, or the field of a field, or nothing.
    (tools / "jq").write_text(
        "#!/usr/bin/env python3\nimport json, sys\n"
        "value = json.load(open(sys.argv[3]))\n"
        "for name in sys.argv[2].split()[0].strip('.').split('.'):\n"
        "    value = None if value is None else value[name]\n"
        "print('' if value is None else value)\n"
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    given = {"ROW": row, "IMAGES": "https://example.org/images.tar", "NONCE": "77ab"}
    for step in complete()["steps"]:
        ran = subprocess.run(
            ("bash", "-e", "-c", step.get("run", "")),
            cwd=folder,
            env=given | {"REATTACK": "5", "PATH": f"{tools}:/usr/bin:/bin", "CALLS": str(calls)},
            check=False,
        )
        if ran.returncode:
            return ran.returncode, calls.read_text()
    return 0, calls.read_text()


SUBMISSION: dict[str, Any] = {"repository": None, "commit": None, "lock": None}
OF_A_STRANGER: dict[str, Any] = {
    "repository": "https://example.org/code",
    "commit": "a" * 40,
    "lock": {"url": "https://example.org/lock.txt", "sha256": SHA256},
}


@pytest.mark.parametrize("submission", [SUBMISSION, OF_A_STRANGER], ids=["ours", "a stranger's"])
def test_complete_check_runs_all_checks_in_the_sealed_container(
    tmp_path: Path, submission: dict[str, Any]
) -> None:
    code, calls = scripts(tmp_path, ROW, submission)
    assert code == 0, calls
    lines = calls.splitlines()
    assert "docker build -t dent-board -f board/Dockerfile ." in lines
    records, whole = (split(shlex.split(line)) for line in lines if f"check /{ROW}" in line)
    for outside, inside in (records, whole):
        assert " ".join(outside).startswith(SEALED)
        assert all(word.endswith(":ro") for word in outside if ":/" in word)
        refuse_unknown_options(inside)
    assert records[1] == ["check", f"/{ROW}", "--records-only"]
    assert whole[1] == [
        *("check", f"/{ROW}", "--images-archive", "/images.tar"),
        *("--reattack", "5", "--reattack-nonce", "77ab", "--allow-code"),
    ]
    cloned = f"git -C code checkout --detach {'a' * 40} --"
    installed = "docker build -t dent-board-row lock"
    strange = submission is OF_A_STRANGER
    assert (cloned in lines, installed in lines) == (strange, strange)
    if strange:
        assert "git clone --no-checkout -- https://example.org/code code" in lines
        assert lines.index("sha256sum --check") < lines.index(installed)


@pytest.mark.parametrize("row", ["board", "src/dent/x", "board/../x", "board/a/b/c", "board/a/-b"])
def test_name_that_is_no_row_is_refused_before_anything_is_fetched(
    tmp_path: Path, row: str
) -> None:
    code, calls = scripts(tmp_path, row, SUBMISSION)
    assert code == 1
    assert "check" not in calls
    assert "curl" not in calls
