"""Links and special files in an untrusted run folder cannot affect files outside it."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dent.evaluation import RecordedRun, RecordError, evaluate, load_run, verify
from dent.evaluation.records.folder import PLAN, RUN
from dent.evaluation.records.journal import JOURNAL
from dent.evaluation.records.sweep import SWEEP, read_sweep
from dent.report import list_runs, listing, write_report
from dent.storage.disk import read, write_atomically
from dent.storage.lock import HOLDER, LOCK
from tests.evaluation.subjects import SMALL, make_subject

MINE = b"years of work"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "run"
    evaluate(make_subject(), SMALL, out=path)
    return path


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine"
    path.write_bytes(MINE)
    return path


FILES = (RUN, PLAN, JOURNAL, LOCK, HOLDER, "result.json")


@pytest.mark.parametrize("name", FILES)
def test_run_files_are_not_written_through_symbolic_links(
    name: str, folder: Path, mine: Path
) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(mine)
    # result.json is replaced by a rename, which does not write through the link.
    if name == "result.json":
        evaluate(make_subject(), SMALL, out=folder)
        assert not (folder / name).is_symlink()
    else:
        with pytest.raises(RecordError, match=rf"{name}: it is a symbolic link"):
            evaluate(make_subject(), SMALL, out=folder)
    assert mine.read_bytes() == MINE


@pytest.mark.parametrize("name", [LOCK, JOURNAL])
def test_run_files_with_another_hard_link_are_not_written(
    name: str, folder: Path, tmp_path: Path
) -> None:
    os.link(folder / name, tmp_path / "another")
    before = (tmp_path / "another").read_bytes()
    with pytest.raises(RecordError, match="another name"):
        evaluate(make_subject(), SMALL, out=folder)
    assert (tmp_path / "another").read_bytes() == before


def test_a_symbolic_link_as_the_tensor_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (folder / "adversarial").rename(home)
    (home / ".tmp-keep").write_bytes(MINE)
    (folder / "adversarial").symlink_to(home)
    before = sorted(home.iterdir())
    with pytest.raises(RecordError, match="adversarial must be a folder, not a link"):
        evaluate(make_subject(), SMALL, out=folder)
    assert sorted(home.iterdir()) == before
    found = verify(folder, make_subject())
    assert any("must be a folder, not a link" in problem for problem in found.problems)


def test_temporary_files_are_exclusively_created_with_random_names(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    real = os.open

    def watched(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            assert flags & os.O_EXCL
            names.append(Path(path).name)
        return real(path, flags, mode)

    for old in (".tmp-page.html", ".tmp-plan.json"):
        (tmp_path / old).symlink_to(mine)
    monkeypatch.setattr(os, "open", watched)
    for _ in range(2):
        write_atomically(tmp_path / "page.html", b"a page")
    monkeypatch.undo()
    assert len(set(names)) == 2
    assert mine.read_bytes() == MINE
    assert (tmp_path / "page.html").read_bytes() == b"a page"


def test_a_symbolic_link_with_the_temporary_name_is_not_followed(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dent.storage.disk.secrets.token_hex", lambda _: "known")
    (tmp_path / ".tmp-page.html-known").symlink_to(mine)
    with pytest.raises(RecordError, match="cannot write"):
        write_atomically(tmp_path / "page.html", b"a page")
    assert mine.read_bytes() == MINE


def test_write_errors_mention_the_old_content_only_if_there_was_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecordError, match=r"such file or directory\. Check that the folder exists"):
        write_atomically(tmp_path / "none" / "page.html", b"a page")
    (tmp_path / "page.html").write_bytes(b"old")
    monkeypatch.setattr("dent.storage.disk.secrets.token_hex", lambda _: "known")
    (tmp_path / ".tmp-page.html-known").mkdir()
    with pytest.raises(RecordError, match=r"\. The old content is unchanged\. Check"):
        write_atomically(tmp_path / "page.html", b"new")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "fifo": (os.mkfifo, "it is not a regular file"),
    "folder": (Path.mkdir, "it is not a regular file"),
    "link": (lambda path: path.symlink_to("/dev/zero"), "it is a symbolic link"),
    "sparse": (sparse, "bytes, and at most"),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", [RUN, PLAN, JOURNAL])
def test_special_and_oversized_run_files_are_refused_without_blocking(
    kind: str, name: str, folder: Path
) -> None:
    lay, says = SPECIAL[kind]
    (folder / name).unlink()
    lay(folder / name)
    with pytest.raises(RecordError, match=says):
        load_run(folder)
    (listed,) = list_runs(folder.parent)
    assert says in (listed.error or "")


@pytest.mark.parametrize("kind", SPECIAL)
def test_verify_reports_special_and_oversized_tensor_files(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    lay, says = SPECIAL[kind]
    tensor = sorted((folder / "adversarial").iterdir())[0]
    tensor.unlink()
    lay(tensor)
    found = verify(folder, make_subject())
    assert any(says in problem for problem in found.problems), found.problems
    write_report([folder], tmp_path / "page.html")


def test_verify_reports_a_tensor_file_larger_than_its_record(folder: Path) -> None:
    tensor = sorted((folder / "adversarial").iterdir())[0]
    tensor.write_bytes(tensor.read_bytes() + bytes(2**17))
    problems = verify(folder, make_subject()).problems
    assert any("and at most" in problem for problem in problems), problems


def test_an_unexpected_error_in_one_run_does_not_hide_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, folder.parent / "another")

    def failing(path: Path) -> RecordedRun:
        if path.name == "run":
            raise ArithmeticError("what is this?")
        return load_run(path)

    monkeypatch.setattr(listing, "load_run", failing)
    errors = [run.error for run in list_runs(folder.parent)]
    assert errors == [None, "unreadable: ArithmeticError: what is this?"]


def test_a_sweep_record_with_an_invalid_folder_name_is_refused(tmp_path: Path) -> None:
    for name in ("..", ".", "/etc", "a/b", "eps=../8", "eps=8\n"):
        record = f'{{"schema_version": 1, "over": "eps", "runs": {{"8/255": "{name}"}}}}'
        (tmp_path / SWEEP).write_text(record.replace("\n", "\\n"))
        with pytest.raises(RecordError, match="String should match pattern"):
            read_sweep(tmp_path)


def test_an_invalid_file_name_raises_a_record_error(tmp_path: Path) -> None:
    for name in ("n" * 5000, "nul\0"):
        with pytest.raises(RecordError, match="cannot read"):
            read(tmp_path / name)
        with pytest.raises(RecordError, match="cannot read"):
            write_report([tmp_path / name], tmp_path / "page.html")


@pytest.fixture
def closed() -> Iterator[Path]:
    """Yield a folder with an unreadable subfolder. Root becomes another user for the test."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "secret").mkdir(mode=0o000)
    if os.getuid() == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(os.getuid())
    (folder / "secret").rmdir()
    folder.rmdir()


def test_an_unreadable_folder_is_listed_with_its_error(closed: Path) -> None:
    (listed,) = list_runs(closed)
    assert "Permission denied" in (listed.error or "")
    with pytest.raises(RecordError, match=r"secret.*: Permission denied"):
        write_report([closed / "secret"], closed / "page.html")
    with pytest.raises(RecordError, match=r"secret.*: Permission denied"):
        list_runs(closed / "secret" / "inside")
