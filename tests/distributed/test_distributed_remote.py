"""Test runs at a URL: they can be read at any time, and resumed by any process."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dent.cli.app import main
from dent.errors import ConfigError, MissingExtraError
from dent.evaluation import Progress, RecordError, Settings, evaluate, load_run
from dent.evaluation.remote import Place, _Remote, fetched, written
from tests.distributed.fake_pool import evaluate_by_fakes
from tests.distributed.toys import contents
from tests.evaluation.subjects import SMALL, make_subject

fsspec = pytest.importorskip("fsspec")
URL = "memory://bucket/deep/run"


@pytest.fixture(autouse=True)
def store() -> Iterator[dict[str, object]]:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    yield memory.store
    memory.store.clear()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("single") / "run"
    evaluate(make_subject(), SMALL, out=folder)
    return contents(folder)


def run_at(url: str, *, settings: Settings = SMALL, stop_at: int | None = None) -> None:
    def report(state: Progress) -> None:
        if state.done == stop_at:
            raise KeyboardInterrupt

    with written(url, every=0) as place:
        evaluate(make_subject(), settings, out=place.folder, progress=place.watch(report))


def test_run_at_a_url_can_be_read_and_resumed_after_every_upload(
    single: dict[str, object], store: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    put, states = _Remote.put, list[dict[str, object]]()

    def watched(self: _Remote, name: str, content: bytes) -> None:
        put(self, name, content)
        if any(path.endswith("run.json") for path in store):
            with fetched(URL) as folder:
                run = load_run(folder)
                for record in run.units():
                    if record.kind == "attack":
                        run.adversarial(record)
        states.append(dict(store))

    monkeypatch.setattr(_Remote, "put", watched)
    run_at(URL)
    monkeypatch.undo()
    with fetched(URL) as folder:
        assert contents(folder) == single
    assert len(states) > 29  # one upload of the journal per unit, and the tensors
    for killed_after in (len(states) // 3, 2 * len(states) // 3):
        store.clear()
        store.update(states[killed_after])
        with fetched(URL) as folder:
            before = len(load_run(folder).records)
        run_at(URL)
        with fetched(URL) as folder:
            assert contents(folder) == single
            first, second = load_run(folder).run.sessions
        assert 0 < before < 29
        assert second.units == 29 - before
        assert first.ended is None  # it was killed


def test_a_kill_within_the_first_upload_does_not_block_the_url(
    store: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    put, states = _Remote.put, list[dict[str, Any]]()

    def watched(self: _Remote, name: str, content: bytes) -> None:
        put(self, name, content)
        states.append(dict(store))

    monkeypatch.setattr(_Remote, "put", watched)
    with pytest.raises(KeyboardInterrupt), written(URL, every=1e9) as place:
        evaluate(make_subject(), SMALL, out=place.folder, progress=place.watch(at_second))
    monkeypatch.undo()
    assert len(states) >= 3
    for state in states[:3]:
        store.clear()
        store.update(state)
        with pytest.raises(KeyboardInterrupt), written(URL, every=1e9) as place:
            evaluate(make_subject(), SMALL, out=place.folder, progress=place.watch(at_second))


def at_second(state: Progress) -> None:
    if state.done >= 2:
        raise KeyboardInterrupt


def test_only_a_run_that_is_resumed_downloads_the_ascents(store: dict[str, Any]) -> None:
    run_at(URL)
    fsspec.filesystem("memory").pipe_file(f"{URL}/ascents/some.pt", b"computed before")
    for tensors in (True, False):
        with fetched(URL, tensors=tensors) as folder:
            assert not (folder / "ascents").exists()
            assert any(folder.rglob("*.safetensors")) == tensors
    with written(URL) as place:
        assert (place.folder / "ascents/some.pt").read_bytes() == b"computed before"


def test_refusals_name_the_url_and_not_its_temporary_copy() -> None:
    run_at(URL)

    def resume_another() -> None:
        with written(URL) as place:
            evaluate(make_subject(), Settings(n=3), out=place.folder)

    def read_without_plan() -> None:
        with fetched(URL) as folder:
            (folder / "plan.json").unlink()
            load_run(folder)

    for refuse in (resume_another, read_without_plan):
        with pytest.raises(RecordError) as refused:
            refuse()
        assert URL in str(refused.value)
        assert "dent-" not in str(refused.value)


def test_interrupted_run_is_uploaded_and_workers_can_resume_it(single: dict[str, object]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_at(URL, stop_at=13)
    with fetched(URL, tensors=False) as folder:
        assert load_run(folder).run.status == "interrupted"
        assert len(load_run(folder).records) == 13
        assert not list(folder.rglob("*.safetensors"))
    with written(URL) as place:
        evaluate_by_fakes(make_subject(), SMALL, place.folder, progress=place.watch(None))
    with fetched(URL) as folder:
        assert contents(folder) == single


def test_dropped_tensors_are_not_uploaded(store: dict[str, object]) -> None:
    run_at(URL, settings=Settings(**{**SMALL.to_json(), "tensors": "drop"}))
    names = {name.rpartition("/")[2] for name in store}
    assert names == {"run.json", "plan.json", "journal.jsonl", "result.json"}


def test_second_writer_at_a_url_is_reported_with_the_local_folder(
    store: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def report(state: Progress) -> None:
        if state.done == 8 and (journal := store.get("/bucket/deep/run/journal.jsonl")) is not None:
            fsspec.filesystem("memory").pipe_file(
                "/bucket/deep/run/journal.jsonl", journal.getvalue() + b"{}\n"
            )

    with (
        pytest.raises(RecordError, match="is being written to by another process"),
        pytest.warns(UserWarning, match=rf"All records are in {tmp_path}"),
        written(URL, every=0) as place,
    ):
        evaluate(make_subject(), SMALL, out=place.folder, progress=place.watch(report))


def written_to(place: Place, journal: bytes, tensor: bytes = b"") -> None:
    (place.folder / "adversarial").mkdir(parents=True, exist_ok=True)
    (place.folder / "journal.jsonl").write_bytes(journal)
    (place.folder / "adversarial/a.safetensors").write_bytes(tensor)


def test_second_writer_replaces_no_tensor_of_the_first(store: dict[str, Any]) -> None:
    with written(URL, every=0) as first, written(URL, every=0) as second:
        written_to(first, b"one\n", b"tensor of the first")
        written_to(second, b"two, longer\n", b"tensor of the second")
        first.push()
        with pytest.raises(RecordError, match="has 4 bytes there, and this one left it with noth"):
            second.push()
        shutil.rmtree(second.folder)
    (name,) = (name for name in store if name.endswith(".safetensors"))
    assert store[name].getvalue() == b"tensor of the first"


@pytest.mark.parametrize("arrived", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_upload_is_repeated_after_a_lost_connection(
    store: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, begun: bool, arrived: bool
) -> None:
    put = _Remote.put

    def lost(self: _Remote, name: str, content: bytes) -> None:
        if arrived or name != "journal.jsonl":
            put(self, name, content)
        if name == "journal.jsonl":
            raise RecordError("connection lost")

    with written(URL, every=0) as place:
        if begun:
            written_to(place, b"1\n")
            place.push()
        written_to(place, b"1\n2\n")
        monkeypatch.setattr(_Remote, "put", lost)
        with pytest.raises(RecordError, match="connection lost"):
            place.push()
        monkeypatch.undo()
        place.push()
    (name,) = (name for name in store if name.endswith("journal.jsonl"))
    assert store[name].getvalue() == b"1\n2\n"


def test_records_stay_local_if_the_upload_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no credentials")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", refuse)
    with (
        pytest.raises(RecordError, match=r"no credentials.*All records are in") as told,
        written(URL) as place,
    ):
        evaluate(make_subject(), SMALL, out=place.folder)
    assert load_run(place.folder).run.status == "complete"
    assert str(place.folder) in str(told.value)


def test_file_url_is_treated_as_a_path(single: dict[str, object], tmp_path: Path) -> None:
    run_at(f"file://{tmp_path}/run")
    assert contents(tmp_path / "run") == single
    with fetched(f"file://{tmp_path}/run") as folder:
        assert folder == tmp_path / "run"


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("nowhere://bucket/run", ConfigError, r"nowhere.*a store that fsspec knows: .*s3"),
        ("s3://bucket/run", MissingExtraError, r"s3fs"),
        ("memory://bucket/nothing", RecordError, "there is nothing at memory://bucket/nothing"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused(
    url: str, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(kind, match=message), fetched(url):
        pass


def test_evaluate_merge_show_list_verify_and_report_accept_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_remote.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def small():\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3072, 10)).eval()\n"
    )
    monkeypatch.chdir(tmp_path)

    def dent(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dent", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    asked = (
        *("evaluate", "--model", "own_remote:small", "--device", "cpu", "--iterations", "1"),
        *("--n", "6", "--batch-size", "2", "--defense", "static"),
    )
    for number in ("1", "2"):
        code, out, err = dent(*asked, "--shard", f"{number}/3", "--out", f"memory://b/{number}")
        assert code == 0, err
        assert f"memory://b/{number}/result.json" in out
        assert "Partial" in out
    merged = dent("merge", "memory://b/1", "memory://b/2", "--out", "memory://b/all", "--json")
    assert merged[0] == 3
    assert json.loads(merged[1])["runs"] == ["memory://b/1", "memory://b/2"]
    assert "the same `dent evaluate` with --out memory://b/all" in merged[2]
    assert dent("merge", "memory://b/1", "--out", "memory://b/all")[0] == 2  # already exists
    code, table, err = dent(*asked, "--out", "memory://b/all")
    assert (code, "Partial" in table) == (0, False), err
    assert dent("show", "memory://b/all")[1] == table
    assert "memory://b/all  complete 7/7" in dent("list", "memory://b")[1]
    verified = dent("verify", "memory://b/all", "--allow-code", "--json")
    assert json.loads(verified[1])["status"] == "verified"
    assert dent("report", "memory://b/all", "memory://b/1", "-o", "both.md")[0] == 0
    assert "all" in (tmp_path / "both.md").read_text()
    everything = dent("merge", "memory://b/1", "memory://b/all", "--out", "here")
    assert (everything[0], "7 of 7 units" in everything[1]) == (0, True)
    assert load_run(tmp_path / "here").run.status == "complete"
