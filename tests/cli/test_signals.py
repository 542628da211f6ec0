"""Test that SIGTERM and SIGHUP end a command like Ctrl-C: it keeps records, not temporary files."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from dent import data, training
from dent.cli import app, resolve, runner
from dent.distributed import merge as merging
from dent.evaluation import Settings, evaluate, load_run, remote
from dent.evaluation.records.folder import RunFolder
from dent.evaluation.records.journal import JOURNAL
from dent.evaluation.records.shard import Shard
from dent.storage.lock import FolderLock
from dent.support import signals
from dent.support.signals import Terminated, as_interrupts, kept
from tests.cli import here
from tests.evaluation.subjects import SMALL, make_subject

URL = "memory://signals/run"
KINDS = [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
EVALUATE = (
    *("evaluate", "--model", "own_signalled:small", "--device", "cpu", "--iterations", "1"),
    *("--n", "6", "--batch-size", "2", "--defense", "static"),
)
MODEL = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3072, 10)).eval()
"""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder for temporary files; the test runs in a work folder beside it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "own_signalled.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path / "work")
    return folder


@pytest.fixture
def store() -> Iterator[dict[str, Any]]:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.store.clear()
    yield memory.store
    memory.store.clear()


@pytest.fixture
def dent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run a command in this process and return its exit status and output."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["dent", *arguments])
        before = [signal.getsignal(number) for number, _ in KINDS]
        code: Any = 0
        try:
            app.main()
        except SystemExit as end:
            code = end.code
        assert [signal.getsignal(number) for number, _ in KINDS] == before
        return code, "".join(capsys.readouterr())

    return run


def signalled_at(number: int, unit: int) -> Callable[..., None]:
    """Make a progress callback that signals this process when `unit` units are done."""

    def report(self: Any, state: Any, *_: str) -> None:
        if state.done == unit:
            os.kill(os.getpid(), number)

    return report


@pytest.mark.parametrize(("number", "status"), KINDS)
def test_signal_during_evaluate_uploads_the_records_and_the_run_can_be_resumed(
    number: int,
    status: int,
    dent: Callable[..., tuple[int, str]],
    scratch: Path,
    store: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner._RunReport, "__call__", signalled_at(number, 3))
    code, said = dent(*EVALUATE, "--out", URL)
    assert code == status, said
    assert f"Stopped. The records are in {URL}." in said
    assert "dent: interrupted" in said
    assert (number != signal.SIGINT) == (signal.Signals(number).name in said)
    assert store["/signals/run/journal.jsonl"].getvalue().count(b"\n") == 3
    run = json.loads(store["/signals/run/run.json"].getvalue())
    assert (run["status"], run["sessions"][-1]["outcome"]) == ("interrupted", "interrupted")
    assert list(scratch.iterdir()) == []

    monkeypatch.undo()
    monkeypatch.chdir(scratch.parent / "work")
    code, said = dent(*EVALUATE, "--out", URL)
    assert code == 0, said
    assert json.loads(store["/signals/run/run.json"].getvalue())["status"] == "complete"


def test_records_stay_local_if_their_upload_fails_after_a_signal(
    dent: Callable[..., tuple[int, str]],
    scratch: Path,
    store: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = type(remote._open(URL)[0])
    write = files.pipe_file

    def refuse(self: Any, path: str, value: bytes, **options: Any) -> None:
        if path.endswith(JOURNAL) and value:  # the first upload, of an empty journal, succeeds
            raise PermissionError("no credentials")
        write(self, path, value, **options)

    monkeypatch.setattr(runner._RunReport, "__call__", signalled_at(signal.SIGTERM, 3))
    monkeypatch.setattr(files, "pipe_file", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, said = dent(*EVALUATE, "--out", URL)
    assert code == 143
    assert re.search(r"dent: warning: .*no credentials.*All records are in", said)
    (kept_here,) = scratch.glob("dent-*/run")
    assert str(kept_here) in said
    assert (kept_here / JOURNAL).read_bytes().count(b"\n") == 3


def test_signal_during_the_last_upload_loses_no_records(
    scratch: Path, store: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    put, calls = remote._Remote.put, [0]

    def signalled(self: Any, name: str, content: bytes) -> None:
        calls[0] += 1
        if calls[0] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        put(self, name, content)

    monkeypatch.setattr(remote._Remote, "put", signalled)
    with as_interrupts(), pytest.raises(Terminated), remote.written(URL) as place:
        evaluate(make_subject(), SMALL, out=place.folder)
    with remote.fetched(URL) as there:
        assert load_run(there).run.status == "complete"
    assert list(scratch.iterdir()) == []


def test_signal_during_dent_paper_keeps_the_records(
    dent: Callable[..., tuple[int, str]], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner._RunReport, "__call__", signalled_at(signal.SIGTERM, 1))
    code, said = dent("paper", "table6", "--scale", "cpu", "--device", "cpu", "--out", "paper")
    assert code == 143, said
    assert "Stopped. The records are in paper." in said
    (run,) = Path("paper/runs").glob("*/run.json")
    assert json.loads(run.read_text())["status"] == "interrupted"


def test_signal_during_training_prints_how_to_resume(
    dent: Callable[..., tuple[int, str]], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = cast("data.ArrayDataset", data.load("cifar10-sample"))
    halves = {
        split: data.ArrayDataset(
            "halves", split, images.classes, images.pixels[part], images.labels[part]
        )
        for split, part in (("train", slice(128)), ("test", slice(128, None)))
    }

    def signalled(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training, "train", signalled)
    monkeypatch.setattr(resolve, "dataset", lambda _, __, split="test": halves[split])
    monkeypatch.setattr(training, "check_measured", lambda *_: None)
    code, said = dent(
        "train", "--recipe", "nominal", "--model", "resnet-8-1", "--device", "cpu", "--out", "here"
    )
    assert code == 143, said
    assert "Stopped. The checkpoint is in here. The same command resumes the training." in said


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    settings = Settings(n=8, batch_size=4)
    for number in (1, 2):
        evaluate(make_subject(), settings, out=tmp_path / f"{number}", shard=Shard(number, 2))
    return [str(tmp_path / "1"), str(tmp_path / "2")]


def test_signal_during_merge_leaves_no_output(
    dent: Callable[..., tuple[int, str]],
    shards: list[str],
    scratch: Path,
    store: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put = RunFolder.put

    def signalled(self: RunFolder, *args: Any) -> None:
        put(self, *args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "put", signalled)
    for out in (str(scratch / "all"), URL):
        code, said = dent("merge", *shards, "--out", out)
        assert code == 143, said
    assert list(scratch.iterdir()) == []
    assert store == {}


def test_merge_removes_the_leftovers_of_a_killed_merge(shards: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out" / "all"
    folders = [Path(each) for each in shards]
    child = os.fork()
    if not child:
        RunFolder.update = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment]
        merging(folders, out)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    (left,) = out.parent.iterdir()
    assert left.name.startswith(".tmp-all-")
    other = out.parent / ".tmp-all-else"
    other.mkdir()
    running_now = out.parent / ".tmp-all-12345678"
    running_now.mkdir()
    with FolderLock(running_now):
        merging(folders, out)
    assert {path.name for path in out.parent.iterdir()} == {"all", other.name, running_now.name}
    assert load_run(out).run.status == "complete"


def test_merge_refuses_an_output_folder_inside_an_input(
    dent: Callable[..., tuple[int, str]], shards: list[str], tmp_path: Path
) -> None:
    code, said = dent("merge", *shards, "--out", f"{shards[0]}/inside")
    assert (code, "is only read: choose a folder elsewhere" in said) == (2, True)
    assert not Path(shards[0], "inside").exists()


def test_sighup_that_nohup_ignores_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with as_interrupts() as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert received.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signal_handlers_are_unchanged_outside_the_main_thread() -> None:
    seen = []

    def work() -> None:
        with as_interrupts(), kept():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_sigterm_handler_set_by_a_library_is_undone() -> None:
    with as_interrupts() as received:
        with kept():
            signal.signal(signal.SIGTERM, lambda *_: None)  # as ray.init does
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
    assert received.number == signal.SIGTERM


def _exit_as_ray_does() -> None:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
    signal.raise_signal(signal.SIGTERM)


def test_sigterm_that_a_library_answers_by_its_own_exit_still_interrupts() -> None:
    with as_interrupts() as received:
        with pytest.raises(Terminated), kept():
            _exit_as_ray_does()
        with pytest.raises(SystemExit), kept():
            sys.exit(1)
    assert received.number == signal.SIGTERM


def test_sigterm_while_ray_starts_ends_a_server_with_143(
    dent: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = pytest.importorskip("dent.serving.launch")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("dent.serving.loading.check", lambda _: None)
    monkeypatch.setattr(launch.ray, "init", lambda **_: _exit_as_ray_does())
    code, said = dent("serve", "--port", "0")
    assert code == 143
    assert "dent: interrupted by SIGTERM" in said


def test_repeated_signals_interrupt_only_once_within_30_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    with as_interrupts() as received:
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        assert received.number == signal.SIGTERM
        clock[0] += 31
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
        received.ignore()
        clock[0] += 1000
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
def test_terminated_process_reports_how_to_resume_and_keeps_its_run(scratch: Path) -> None:
    command = [sys.executable, "-m", "dent", *EVALUATE, "--n", "256", "--out", "run"]
    said = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            said += line
            if line.startswith("[2/"):
                process.terminate()
    assert process.returncode == 143, said
    assert "Stopped. The records are in run. The same command resumes the run." in said
    assert load_run(Path("run")).run.status == "interrupted"


def test_a_second_interrupt_while_the_first_is_reported_gives_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dent.cli.app.app", interrupted)
    assert here.dent("list").code == 130
    monkeypatch.setattr("dent.cli.app.app", lambda: sys.exit(130))
    monkeypatch.setattr("dent.cli.console.note", interrupted)
    assert here.dent("list").code == 130
