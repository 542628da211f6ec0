"""The journal: complete lines are read back, and an incomplete last line is dropped."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dent.evaluation import RecordError
from dent.evaluation.records import journal
from dent.evaluation.records.journal import JournalWriter, line_of, read_journal, repair
from dent.evaluation.records.schema import TensorRef, Trace, UnitRecord, UnitTiming
from dent.storage.canonical import canonical, digest

shares = st.floats(0, 1e6, allow_nan=False)
counts = st.integers(0, 10**6)
traces = st.builds(
    Trace,
    rows=counts,
    entropy=st.none() | st.lists(shares, min_size=1, max_size=4).map(tuple),
    sigma=st.none() | st.tuples(shares),
    status=st.dictionaries(st.sampled_from(["adapted", "reverted", "7"]), counts),
)
records = st.builds(
    UnitRecord,
    kind=st.sampled_from(["natural", "attack", "transfer", "assembled"]),
    defense=st.text(min_size=1, max_size=12),
    attack=st.none() | st.text(max_size=8),
    batch=st.none() | counts,
    seed=st.integers(0, 2**63 - 1),
    served=st.lists(st.none() | st.integers(0, 999), max_size=6).map(tuple),
    trace=traces,
    claimed=st.none() | st.lists(st.booleans(), max_size=5).map(tuple),
    claimed_after=st.none() | st.dictionaries(st.text(max_size=5), counts, max_size=2),
    notes=st.lists(st.text(max_size=20), max_size=2).map(tuple),
    tensor=st.none()
    | st.just(TensorRef(file="adversarial/a-0.safetensors", sha256="0" * 64, shape=(1, 3, 6, 6))),
    timing=st.builds(UnitTiming, total=shares, attack=shares, serve=shares, static=st.none()),
)


def make_record(batch: int, served: tuple[int | None, ...] = (1, None, 2)) -> UnitRecord:
    return UnitRecord(
        kind="natural",
        defense="dent",
        attack=None,
        batch=batch,
        seed=batch,
        served=served,
        trace=Trace(rows=2, entropy=(0.5, 0.25), sigma=None, status={"adapted": 3}),
        timing=UnitTiming(total=0.5, attack=0.0, serve=0.25, static=0.125),
    )


def write(path: Path, count: int = 4) -> list[UnitRecord]:
    written = [make_record(batch) for batch in range(count)]
    writer = JournalWriter(path)
    for record in written:
        writer.append(record)
    writer.close()
    return written


@given(written=st.lists(records, max_size=5))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_record_is_read_back_unchanged(tmp_path: Path, written: list[UnitRecord]) -> None:
    path = tmp_path / "journal.jsonl"
    path.unlink(missing_ok=True)
    writer = JournalWriter(path)
    for record in written:
        writer.append(record)
    writer.close()
    assert list(read_journal(path)) == written
    # str.splitlines() would also split at U+2028 and similar characters, which texts may contain.
    assert path.read_bytes().count(b"\n") == len(written)


def test_a_truncated_journal_keeps_its_complete_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written = write(path, 2)
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    edges = {at + by for at in (0, first, len(content)) for by in (-1, 0, 1)}
    for length in sorted({*range(0, len(content), 17), *edges} & {*range(len(content) + 1)}):
        path.write_bytes(content[:length])
        whole = sum(length >= end for end in (first, len(content)))
        assert list(read_journal(path)) == written[:whole]
        assert repair(path) == length - (0, first, len(content))[whole]
        assert path.read_bytes() == content[: (0, first, len(content))[whole]]


def test_a_damaged_line_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, 2)
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for at in range(0, first - 1, 3):  # not the newline, which is tested below
        damaged = bytearray(content)
        damaged[at] ^= 1
        path.write_bytes(bytes(damaged))
        with pytest.raises(RecordError, match=r"journal.jsonl, line 1\b"):
            list(read_journal(path))
        assert repair(path) == 0
        assert path.read_bytes() == bytes(damaged)
    path.write_bytes(content[: first - 1] + content[first:])
    with pytest.raises(RecordError, match="line 1 is not a record"):
        list(read_journal(path))


def test_an_edited_line_with_its_old_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, 2)
    path.write_bytes(path.read_bytes().replace(b'"served":[1,null,2]', b'"served":[1,1,2]', 1))
    with pytest.raises(RecordError, match="line 1 does not match its checksum"):
        list(read_journal(path))


def test_an_unknown_key_is_refused_even_with_a_matching_checksum(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    plain = make_record(0).to_json() | {"colour": "blue"}
    path.write_text(canonical({"record": plain, "sha256": digest(plain)}) + "\n")
    with pytest.raises(RecordError, match=r"line 1: record.natural.colour: Extra|line 1: .*colour"):
        list(read_journal(path))


def test_a_write_that_fails_on_a_full_disk_leaves_the_journal_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    written = write(path, 2)
    content = path.read_bytes()
    real = os.write

    def half(handle: int, data: bytes) -> int:
        if len(data) < 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, bytes(data)[: len(data) // 2])

    writer = JournalWriter(path)
    monkeypatch.setattr(os, "write", half)
    with pytest.raises(RecordError, match=r"no space left .* run the same command again"):
        writer.append(make_record(2))
    assert path.read_bytes() == content
    monkeypatch.undo()
    writer.append(make_record(2))
    writer.close()
    assert list(read_journal(path)) == [*written, make_record(2)]


def test_an_append_to_dev_full_raises_a_record_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    # This replaces the function that refuses links and devices.
    monkeypatch.setattr(journal, "open_regular", lambda *_, **__: os.open("/dev/full", os.O_WRONLY))
    with pytest.raises(RecordError, match="no space left"):
        JournalWriter(tmp_path / "journal.jsonl").append(make_record(0))


def test_line_of_returns_one_line_of_canonical_json() -> None:
    line = line_of(make_record(3))
    assert line.count(b"\n") == 1
    assert b" " not in line
