"""The run folder: which runs are resumed or refused, and that a refusal changes no file."""

import ast
import errno
import json
import os
import re
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dent
from dent.errors import DataError
from dent.evaluation import (
    EvaluationResult,
    LockedError,
    Progress,
    RecordError,
    SchemaVersionError,
    Settings,
    SpecMismatchError,
    Subject,
    evaluate,
    load_run,
)
from dent.evaluation.engine import sessions
from dent.evaluation.records.journal import JOURNAL
from dent.evaluation.records.record_file import dump
from dent.storage.canonical import without_timing
from dent.storage.lock import HOLDER, FolderLock
from dent.threat import ThreatModel
from tests.evaluation.subjects import SMALL, Push, make_dataset, make_model, make_subject


def tree(path: Path) -> dict[str, bytes]:
    """Return the content of all files in a folder except the lock."""
    files = (item for item in path.rglob("*") if item.is_file() and item.name != "lock")
    return {str(item.relative_to(path)): item.read_bytes() for item in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "first"
    evaluate(make_subject(), SMALL, out=path)
    return path


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def comparable(result: EvaluationResult) -> object:
    plain = without_timing(result.to_json())
    plain.pop("sessions")
    return plain


def test_an_error_message_with_a_file_name_that_is_not_utf_8_does_not_lock_the_run(
    tmp_path: Path,
) -> None:
    name = "img\udcff.png"  # as Python reads the bytes img\xff.png

    def stop(state: Progress) -> None:
        if state.done >= 2:
            raise DataError(f"{name} cannot be read" + "!" * 5000)

    subject = make_subject()
    with pytest.raises(DataError):
        evaluate(subject, SMALL, out=tmp_path, progress=stop)
    (session,) = load_run(tmp_path).run.sessions
    assert session.message is not None
    assert session.message.startswith("img\\udcff.png cannot be read!")
    assert len(session.message) == 4000
    # Older versions wrote the surrogate itself.
    plain = json.loads((tmp_path / "run.json").read_text())
    plain["sessions"][0]["message"] = name
    (tmp_path / "run.json").write_text(json.dumps(plain))
    assert load_run(tmp_path).run.sessions[0].message == "img\\udcff.png"
    assert evaluate(subject, SMALL, out=tmp_path).status == "complete"
    with pytest.raises(RecordError, match="is not valid Unicode"):
        dump(session.model_copy(update={"message": name}))
    assert dump(session.model_copy(update={"message": "\U0001f600"}))


def test_a_complete_run_is_not_run_again_and_its_folder_is_unchanged(folder: Path) -> None:
    before = tree(folder)
    seen: list[object] = []
    result = evaluate(make_subject(), SMALL, out=folder, progress=seen.append)
    assert result.status == "complete"
    assert seen == []
    assert tree(folder) == before


@pytest.mark.parametrize("lines", [0, 1, 7, 19])
def test_a_run_with_a_truncated_journal_resumes_after_its_last_record(
    folder: Path, lines: int
) -> None:
    content = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    torn = content[lines][: len(content[lines]) // 2]
    (folder / JOURNAL).write_bytes(b"".join(content[:lines]) + torn)
    whole = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    done: list[int] = []
    result = evaluate(
        make_subject(), SMALL, out=folder, progress=lambda state: done.append(state.done)
    )
    assert done[0] == lines
    again = (folder / JOURNAL).read_bytes().splitlines()
    assert [strip(line) for line in again] == [strip(line) for line in content]
    assert comparable(result) == comparable(EvaluationResult.model_validate(whole))
    assert len(result.sessions) == 2


def strip(line: bytes) -> object:
    return without_timing(json.loads(line)["record"])


def changed_weights() -> Subject:
    model = make_model()
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] += 1e-6
    return replace(make_subject({}), model=model)


def changed_data() -> Subject:
    return replace(make_subject(), dataset=make_dataset(seed=1))


REFUSALS: dict[str, tuple[Callable[[], Subject], Settings, str]] = {
    "batch size": (
        make_subject,
        Settings(n=20, batch_size=4),
        r"settings.batch_size: the folder has 8, this run has 4",
    ),
    "weights": (changed_weights, SMALL, r"model.weights: the folder has '"),
    "data": (changed_data, SMALL, r"dataset.digest: the folder has '"),
    "attack": (
        lambda: replace(make_subject(), attacks=[Push(0.25, name="nudge"), Push()]),
        SMALL,
        r"attacks.nudge.settings.strength: the folder has 0.5, this run has 0.25",
    ),
    "one attack more": (
        lambda: replace(make_subject(), attacks=[*make_subject().attacks, Push(2, name="shove")]),
        SMALL,
        r"attacks: the folder has nothing; this run has shove\n",
    ),
    "order of attacks": (
        lambda: replace(make_subject(), attacks=[Push(), Push(0.5, name="nudge")]),
        SMALL,
        r"attacks: the order was nudge, push, and is now push, nudge",
    ),
    "threat": (
        lambda: replace(make_subject(), threat=ThreatModel("linf", "4/255")),
        SMALL,
        r"threat.eps: the folder has '8/255', this run has '4/255'",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_different_evaluation_is_refused_and_the_difference_is_named(
    folder: Path, name: str
) -> None:
    subject, asked, message = REFUSALS[name]
    before = tree(folder)
    with pytest.raises(SpecMismatchError, match=message) as refused:
        evaluate(subject(), asked, out=folder)
    assert refused.value.differences
    assert tree(folder) == before


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))


DAMAGE: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "newer schema": (
        lambda f: edit(f / "run.json", lambda plain: plain.update(schema_version=3)),
        SchemaVersionError,
        r"newer torch-dent \(schema version 3; this one reads up to 2\)",
    ),
    "half of run.json": (
        lambda f: (f / "run.json").write_bytes((f / "run.json").read_bytes()[:100]),
        RecordError,
        r"run.json is damaged",
    ),
    "an unknown key": (
        lambda f: edit(f / "run.json", lambda plain: plain.update(colour="blue")),
        RecordError,
        r"run.json: colour: Extra inputs are not permitted",
    ),
    "another identity": (
        lambda f: edit(f / "run.json", lambda plain: plain.update(identity="0" * 64)),
        RecordError,
        r"run.json was edited",
    ),
    "no plan": (lambda f: (f / "plan.json").unlink(), RecordError, r"plan.json is missing"),
    "another plan": (
        lambda f: edit(f / "plan.json", lambda plain: plain["batches"].pop()),  # type: ignore[attr-defined]
        RecordError,
        r"plan.json is not the plan that run.json was written with",
    ),
    "no journal": (lambda f: (f / JOURNAL).unlink(), RecordError, r"journal.jsonl is missing"),
    "no run.json": (
        lambda f: (f / "run.json").unlink(),
        RecordError,
        r"has a journal but no run.json",
    ),
    "a damaged line": (
        lambda f: (f / JOURNAL).write_bytes((f / JOURNAL).read_bytes().replace(b"1", b"2", 1)),
        RecordError,
        r"journal.jsonl, line 1 ",
    ),
    "a line twice": (
        lambda f: (f / JOURNAL).write_bytes(
            (f / JOURNAL).read_bytes() + (f / JOURNAL).read_bytes().splitlines(keepends=True)[3]
        ),
        RecordError,
        r"is recorded twice",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_refused_and_unchanged(folder: Path, name: str) -> None:
    damage, kind, message = DAMAGE[name]
    damage(folder)
    before = tree(folder)
    with pytest.raises(kind, match=message):
        evaluate(make_subject(), SMALL, out=folder)
    assert tree(folder) == before


def test_folders_and_files_that_are_not_runs_are_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RecordError, match=r"not part of a run \(thesis.tex\)"):
        evaluate(make_subject(), SMALL, out=tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]
    for chapter in range(1, 7):
        (tmp_path / f"chapter-{chapter}.tex").write_text("a year of work")
    with pytest.raises(RecordError, match=r"\(chapter-1.tex, .*, and 3 more\): nothing"):
        evaluate(make_subject(), SMALL, out=tmp_path)
    for chapter in range(1, 7):
        (tmp_path / f"chapter-{chapter}.tex").unlink()
    with pytest.raises(RecordError, match="is a file: a run is a folder"):
        evaluate(make_subject(), SMALL, out=tmp_path / "thesis.tex")
    with pytest.raises(RecordError, match="cannot write"):
        evaluate(make_subject(), SMALL, out=tmp_path / "thesis.tex" / "run")


@pytest.fixture(params=[0o555, 0o000])
def closed(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Yield a read-only or inaccessible folder. Root becomes another user for the test."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(request.param)
    if os.getuid() == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(os.getuid())
    folder.rmdir()


def test_a_folder_without_permission_raises_a_record_error(closed: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot write .*run: Permission denied"):
        evaluate(make_subject({}, []), Settings(n=2), out=closed / "run")
    with pytest.raises(RecordError, match=r"cannot read .*run: Permission denied|does not exist"):
        load_run(closed / "run")


def test_a_second_process_is_refused_and_told_who_holds_the_lock(folder: Path) -> None:
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        held = FolderLock(folder)
        assert held
        os.write(writer, b"!")
        signal.pause()
    try:
        assert os.read(reader, 1) == b"!"
        with pytest.raises(LockedError, match=rf"\(pid {holder} on host "):
            evaluate(make_subject(), SMALL, out=folder)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    # The lock was released when its holder died.
    assert evaluate(make_subject(), SMALL, out=folder).status == "complete"


def test_the_lock_is_released_after_a_refusal(folder: Path) -> None:
    with pytest.raises(SpecMismatchError):
        evaluate(make_subject(), Settings(n=3), out=folder)
    FolderLock(folder).close()


def test_the_lock_names_its_holder_only_while_it_is_held(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()
        with pytest.raises(LockedError, match=rf"\(pid {os.getpid()} on host "):
            FolderLock(tmp_path)
        assert (tmp_path / HOLDER).is_file()
    assert not (tmp_path / HOLDER).exists()
    (tmp_path / HOLDER).write_text("not json")  # a killed holder may leave this
    FolderLock(tmp_path).close()


def without_flock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let locks fail as on a file system without them."""

    def flock(handle: object, operation: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)


def test_a_folder_is_locked_on_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FolderLock(tmp_path).close()  # leaves an empty file, and is copied elsewhere
    without_flock(monkeypatch, errno.ENOSYS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with FolderLock(tmp_path), pytest.raises(LockedError, match=f"pid {os.getpid()} on host"):
            FolderLock(tmp_path)
    FolderLock(tmp_path).close()
    started = 2504723170010840394648645525942032681337042310557631505309
    (tmp_path / "lock").write_text(f"4242\nnode-17\n{started}\n")  # killed on another machine
    with pytest.raises(LockedError, match=r"pid 4242 on host node-17.*is gone, delete .*lock"):
        FolderLock(tmp_path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["lock"]


def test_an_error_of_the_lock_itself_names_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_flock(monkeypatch, errno.ENOLCK)
    with pytest.raises(RecordError, match=r"cannot be locked .*its file system may have no locks"):
        FolderLock(tmp_path)


def test_no_module_imports_a_posix_module() -> None:
    """On Windows, an import of any of these modules would fail."""
    absent = {"fcntl", "grp", "posix", "pwd", "pty", "resource", "syslog", "termios", "tty"}
    for path in Path(dent.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not absent & {name.name for name in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in absent, path


def test_a_lock_whose_holder_cannot_be_written_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RecordError, match="no space left"):
        FolderLock(tmp_path)
    monkeypatch.undo()
    FolderLock(tmp_path).close()


def test_a_run_that_a_full_disk_stopped_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    real, count = os.fsync, [0]

    def full(handle: int) -> None:
        count[0] += 1
        if count[0] > 30:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match="no space left"):
        evaluate(make_subject(), SMALL, out=tmp_path / "run")
    monkeypatch.undo()
    evaluate(make_subject(), SMALL, out=tmp_path / "run")
    both = [(path / JOURNAL).read_bytes().splitlines() for path in (tmp_path / "run", finished)]
    assert [strip(line) for line in both[0]] == [strip(line) for line in both[1]]


def test_an_interrupted_run_is_recorded_as_interrupted_and_can_be_resumed(tmp_path: Path) -> None:
    def stop(state: object) -> None:
        if getattr(state, "done", 0) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(make_subject(), SMALL, out=tmp_path / "run", progress=stop)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["status"], run["sessions"][0]["outcome"]) == ("interrupted", "interrupted")
    assert run["sessions"][0]["units"] == 5
    result = evaluate(make_subject(), SMALL, out=tmp_path / "run")
    assert [session.outcome for session in result.sessions] == ["interrupted", "complete"]


def test_sessions_with_equal_start_times_are_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "now", lambda: "2026-01-01T00:00:00.999999+00:00")
    for stop in (5, 9, None):

        def interrupt(state: object, stop: int | None = stop) -> None:
            if getattr(state, "done", 0) == stop:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            evaluate(make_subject(), SMALL, out=tmp_path / "run", progress=interrupt)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [session["outcome"] for session in run["sessions"]] == [
        "interrupted",
        "interrupted",
        "complete",
    ]
    assert [session["units"] for session in run["sessions"]] == [5, 4, 20]
    assert run["sessions"][1]["started"] == "2026-01-01T00:00:01.000000+00:00"


def test_environment_variables_are_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", "hunter2-secret")
    evaluate(make_subject({}, []), Settings(n=2), out=tmp_path / "run")
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert b"hunter2" not in path.read_bytes()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs names of open files")
def test_tensors_are_synced_before_their_line_and_lines_before_the_next_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, write, replace_file = os.fsync, os.write, os.replace

    def name(handle: int) -> str:
        found = Path(f"/proc/self/fd/{handle}").readlink().name
        return re.sub(r"^(\.tmp-.*)-[0-9a-f]{16}$", r"\1", found)  # without the random part

    def watched_fsync(handle: int) -> None:
        events.append(f"sync {name(handle)}")
        fsync(handle)

    def watched_write(handle: int, data: bytes) -> int:
        events.append(f"write {name(handle)}")
        return write(handle, data)

    def watched_replace(old: Path, new: Path) -> None:
        events.append(f"name {Path(new).name}")
        replace_file(old, new)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "write", watched_write)
    monkeypatch.setattr(os, "replace", watched_replace)
    subject = make_subject({}, [Push()])
    evaluate(
        subject,
        Settings(n=4, batch_size=4),
        out=tmp_path / "run",
        progress=lambda state: events.append(f"before {state.unit.kind if state.unit else ''}"),
    )
    tensor = "000000-00-00.safetensors"
    start = events.index("before attack")
    while events[start + 1].startswith("before"):
        start += 1
    assert events[start + 1 : start + 8] == [
        f"write .tmp-{tensor}",
        f"sync .tmp-{tensor}",
        f"name {tensor}",
        "sync adversarial",
        "write journal.jsonl",
        "sync journal.jsonl",
        "before ",
    ]
