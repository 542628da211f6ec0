"""Fuzz tests: commands on a run folder with any content end as documented and change no other file.

JSON values are replaced by malicious ones, and digests are forged so that later checks are reached
too. Files are replaced by special files. The default tests cover every field, every value and every
command, `make test-slow` takes all cases.
"""

import copy
import json
import math
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from dent import Dent, DentConfig, DentError, SmoothingConfig
from dent.cli.app import app
from dent.evaluation import Settings, Subject, evaluate
from dent.evaluation.records.folder import PLAN, RESULT, RUN
from dent.evaluation.records.journal import JOURNAL
from dent.storage.canonical import digest
from dent.storage.lock import HOLDER, LOCK
from tests.cli.here import dent
from tests.evaluation.subjects import Push, make_model, make_subject
from tests.test_printable import orders

SECONDS = 10
SETTINGS = Settings(n=4, batch_size=4)
RESUME = ("evaluate",)
DEEP: Any = []
for _ in range(500):
    DEEP = [DEEP]
EVIL: dict[str, Any] = {
    "null": None,
    "true": True,
    "minus one": -1,
    "zero": 0,
    "huge": 10**30,
    "near infinity": 1e308,
    "nothing": "",
    "orders": "\x1b[2J\x9b31m\u202ednuof\x07\x00\nverified",
    "half a character": "\ud800",
    "a path": "../../mine",
    "code": "os:abort",
    "long": "n" * 10**5,
    "deep": DEEP,
    "a list": [],
    "an object": {},
    "another object": {"name": "static", "__class__": "x"},
}


def subject() -> Subject:
    model = make_model()
    smoothing = SmoothingConfig(sigma=0.5)
    defended = Dent(model, DentConfig(steps=1, statistics="test", smoothing=smoothing))
    return make_subject({"mine": defended}, [Push()], model=model)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "run"
    evaluate(subject(), SETTINGS, out=path)
    return path


@pytest.fixture(scope="module")
def command_line() -> Any:
    return typer.main.get_command(app)


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch, command_line: Any) -> None:
    monkeypatch.setattr("dent.evaluation.restore", lambda *_, **__: subject())
    # To make it again for every command would take longer than the command.
    monkeypatch.setattr("typer.main.get_command", lambda _: command_line)


@contextmanager
def limited() -> Iterator[None]:
    """Raise TimeoutError if a command takes too long, even inside a blocking system call."""

    def late(*_: object) -> None:
        raise TimeoutError(f"still on after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read_all(folder: Path) -> list[tuple[str, ...]]:
    return [
        ("list", str(folder.parent)),
        ("show", str(folder)),
        ("show", str(folder), "--sample", "100"),
        ("show", str(folder), "--json"),
        ("verify", str(folder), "--records-only"),
        ("verify", str(folder), "--allow-code", "--reattack", "1", "--reattack-nonce", "n"),
        *(("report", str(folder), "-o", str(folder.parent / f"p.{s}")) for s in ("html", "md")),
        ("report", str(folder), "-o", str(folder.parent / "p.csv")),
        RESUME,
    ]


def read_result(folder: Path) -> list[tuple[str, ...]]:
    """Return the commands of `read_all` that read `result.json`."""
    return [command for command in read_all(folder) if command[0] == "verify"]


def survive(folder: Path, mine: Path, commands: list[tuple[str, ...]]) -> None:
    """Check that every command ends as documented and changes no file in `mine`."""
    before = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    for arguments in commands:
        with limited():
            if arguments == RESUME:
                resume(folder)
                continue
            ran = dent(*arguments)
        assert ran.code in range(4), (arguments, ran)
        assert not orders(ran.out + ran.err), (arguments, ran)
        assert "Traceback" not in ran.out + ran.err
    assert {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()} == before
    for page in folder.parent.glob("p.*"):
        assert not orders(page.read_text())


def resume(folder: Path) -> None:
    with suppress(DentError):
        evaluate(subject(), SETTINGS, out=folder)


class Place(NamedTuple):
    """A value in a file of a run: the line in a journal, and the keys that lead to it."""

    file: str
    line: int
    way: tuple[str | int, ...]


def places(folder: Path) -> list[Place]:
    """Return the places of the values in all files, including the outermost value of each.

    Of a list, only the first two items are included.
    """
    found = []
    for file in (RUN, PLAN, RESULT, JOURNAL):
        text = (folder / file).read_text()
        lines = text.splitlines() if file == JOURNAL else [text]
        for line, content in enumerate(lines):
            value = json.loads(content)
            value = value["record"] if file == JOURNAL else value
            found += [Place(file, line, way) for way in ways(value)]
    return found


def ways(value: Any, way: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield way
    inside = value.items() if isinstance(value, dict) else ()
    for key, each in inside or (enumerate(value[:2]) if isinstance(value, list) else ()):
        yield from ways(each, (*way, key))


def replaced(value: Any, way: tuple[str | int, ...], evil: Any) -> Any:
    if not way:
        return evil
    value = copy.copy(value)
    value[way[0]] = replaced(value[way[0]], way[1:], evil)
    return value


def lay(folder: Path, place: Place, evil: Any) -> None:
    """Replace a value, and forge every digest that would reveal it."""
    path = folder / place.file
    if place.file == JOURNAL:
        lines = path.read_text().splitlines()
        record = replaced(json.loads(lines[place.line])["record"], place.way, evil)
        lines[place.line] = json.dumps({"record": record, "sha256": of(record)})
        path.write_text("\n".join(lines) + "\n")
        return
    value = replaced(json.loads(path.read_text()), place.way, evil)
    if place.file == RUN and isinstance(value, dict) and place.way[:1] != ("identity",):
        value["identity"] = of(value.get("spec"))
    path.write_text(json.dumps(value))
    if place.file == PLAN:
        run = json.loads((folder / RUN).read_text())
        (folder / RUN).write_text(json.dumps(run | {"plan": of(value)}))


def of(value: Any) -> str:
    try:
        return digest(value)
    except (ValueError, RecursionError):
        return "0" * 64


def attempt(
    finished: Path, root: Path, place: Place, name: str, chosen: slice = slice(None)
) -> None:
    """Lay a malicious value, and run the chosen ones of the commands that read its file."""
    folder, mine = root / "run", root / "mine"
    shutil.copytree(finished, folder)
    mine.mkdir()
    (mine / "mine").write_text("years of work")
    lay(folder, place, EVIL[name])
    commands = read_result(folder) if place.file == RESULT else read_all(folder)
    try:
        survive(folder, mine, commands[chosen])
    except Exception as error:
        error.add_note(f"{place}: {name}")
        raise
    finally:
        shutil.rmtree(root)


def fields(finished: Path) -> list[Place]:
    """Return the first place of each field.

    A field is a key in a file or in a kind of record. All items of a list are one field, and so are
    the values of all defenses and attacks.
    """
    spec = json.loads((finished / RUN).read_text())["spec"]
    names = {each["name"] for each in (*spec["defenses"], *spec["attacks"])}
    kinds = [
        json.loads(line)["record"]["kind"] for line in (finished / JOURNAL).read_text().splitlines()
    ]
    found: dict[Any, Place] = {}
    for place in places(finished):
        way = tuple("*" if isinstance(key, int) or key in names else key for key in place.way)
        kind = kinds[place.line] if place.file == JOURNAL else ""
        found.setdefault((place.file, kind, way), place)
    return list(found.values())


def covering(finished: Path) -> list[tuple[Place, str, int]]:
    """Return cases that cover every field, and every malicious value with every command.

    Each is a place, the name of a value and the index of a command. `result.json` meets only the
    first command that reads it, which is the fastest.
    """
    values, commands = list(EVIL), len(read_all(finished))
    together = math.lcm(len(values), commands)
    turns: Counter[bool] = Counter()
    chosen = []
    for place in fields(finished):
        of_result = place.file == RESULT
        turn = turns[of_result]
        turns[of_result] += 1
        # Without the shift after each round, some values and commands would never meet.
        command = 0 if of_result else (turn + turn // together) % commands
        chosen.append((place, values[turn % len(values)], command))
    return chosen


def test_commands_on_an_unchanged_run_end_as_documented(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "mine").mkdir()
    survive(tmp_path / "run", tmp_path / "mine", read_all(tmp_path / "run"))
    assert len(places(finished)) > 300


def test_only_verify_reads_the_result(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / RESULT).unlink()
    os.mkfifo(folder / RESULT)  # to open it would take forever
    others = [each for each in read_all(folder) if each not in read_result(folder)]
    assert len(others) == len(read_all(folder)) - 2
    for command in others:
        with limited():
            if command == RESUME:
                evaluate(subject(), SETTINGS, out=folder)
            else:
                assert dent(*command).code == 0


def test_covering_cases_have_every_field_and_every_value_with_every_command(finished: Path) -> None:
    chosen = covering(finished)
    assert len({place for place, _, _ in chosen}) == len(fields(finished)) > 400
    elsewhere = [case for case in chosen if case[0].file != RESULT]
    pairs = {(name, command) for _, name, command in elsewhere}
    assert len(pairs) == len(EVIL) * len(read_all(finished))
    for file in (RUN, RESULT, JOURNAL):
        assert {name for place, name, _ in chosen if place.file == file} == EVIL.keys()


@pytest.mark.parametrize("part", range(4))
def test_covering_malicious_values_end_in_a_documented_exit_status(
    part: int, finished: Path, tmp_path: Path
) -> None:
    for index, (place, name, command) in enumerate(covering(finished)[part::4]):
        chosen = slice(command, command + 1)
        attempt(finished, tmp_path / str(index), place, name, chosen)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVIL)
def test_every_malicious_value_ends_in_a_documented_exit_status(
    name: str, finished: Path, tmp_path: Path
) -> None:
    for index, place in enumerate(places(finished)):
        attempt(finished, tmp_path / str(index), place, name)


def linked(path: Path, to: Path) -> None:
    path.symlink_to(to)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


SPECIAL: dict[str, Callable[[Path, Path], object]] = {
    "fifo": lambda path, mine: os.mkfifo(path),
    "link": lambda path, mine: path.symlink_to(mine / "mine"),
    "link to nothing": lambda path, mine: path.symlink_to(mine / "nothing"),
    "link to a folder": lambda path, mine: path.symlink_to(mine),
    "link to itself": lambda path, mine: path.symlink_to(path),
    "endless": lambda path, mine: path.symlink_to("/dev/zero"),
    "folder": lambda path, mine: path.mkdir(),
    "sparse": lambda path, mine: sparse(path),
    "empty": lambda path, mine: path.touch(),
    "noise": lambda path, mine: path.write_bytes(bytes(range(256))),
}
NAMES = (RUN, PLAN, JOURNAL, RESULT, LOCK, HOLDER, "adversarial", "tensor")


def special(finished: Path, root: Path, name: str, kind: str, chosen: slice) -> None:
    folder, mine = root / "run", root / "mine"
    shutil.copytree(finished, folder)
    mine.mkdir()
    for each in ("mine", ".tmp-keep"):
        (mine / each).write_text("years of work")
    tensor = sorted((folder / "adversarial").iterdir())[0]
    path = tensor if name == "tensor" else folder / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    SPECIAL[kind](path, mine)
    survive(folder, mine, read_all(folder)[chosen])
    shutil.rmtree(root)


@pytest.mark.parametrize("name", NAMES)
def test_sampled_special_files_end_in_a_documented_exit_status(
    name: str, finished: Path, tmp_path: Path
) -> None:
    count = len(read_all(tmp_path))
    for index, kind in enumerate(SPECIAL):
        at = (index + NAMES.index(name)) % count
        special(finished, tmp_path / str(index), name, kind, slice(at, at + 1))
        if name in (LOCK, HOLDER, "adversarial"):  # mostly written
            special(finished, tmp_path / str(index), name, kind, slice(count - 1, count))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", NAMES)
def test_every_special_file_ends_in_a_documented_exit_status(
    name: str, kind: str, finished: Path, tmp_path: Path
) -> None:
    special(finished, tmp_path / "it", name, kind, slice(None))
