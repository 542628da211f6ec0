"""Test archives of records: they are reproducible, and other content is refused."""

import gzip
import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from dent.board import pack as packing
from dent.board.pack import add_images, images_of, pack, unpack
from dent.errors import ConfigError
from dent.evaluation import load_run
from dent.storage.disk import read
from dent.storage.errors import RecordError
from tests.board.rows import make_row, manifest_of
from tests.board.toys import toy
from tests.cli.here import dent
from tests.evaluation.test_stored_images import DAMAGES
from tests.unlisted import deny

SMALL = toy(half=4, batch_size=4, fixed="0-3")


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_row(tmp_path_factory.mktemp("board") / "row", SMALL, None)


def test_pack_is_reproducible_and_holds_only_records_and_images(row: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(row, copy)
    (copy / "notes.txt").write_text("mine")
    (copy / "headline" / ".lock").write_text("")
    packed = pack(copy, tmp_path / "a.tar.gz")
    assert packed.images == tmp_path / "a.images.tar"
    again = pack(row, tmp_path / "b.tar.gz")
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    assert packed.images.read_bytes() == images_of(tmp_path / "b.tar.gz").read_bytes()
    assert packed.manifest == again.manifest == unpack(packed.records, tmp_path / "out")
    bare = load_run(tmp_path / "out" / "headline")
    assert bare.result == load_run(row / "headline").result
    assert not (tmp_path / "out" / "headline" / "adversarial").exists()
    add_images(packed.images, tmp_path / "out")
    assert manifest_of(tmp_path / "out") == packed.manifest
    assert not list((tmp_path / "out").rglob("notes.txt"))
    records = packed.records.stat().st_size
    assert records < packed.images.stat().st_size


def test_declared_digest_ignores_challenges_but_not_changes_of_the_journal(
    row: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(row, copy)
    before = manifest_of(copy)
    (copy / "headline" / "challenges.jsonl").write_text("{}\n")
    (copy / "headline" / "result.json").write_text("{}")
    after = manifest_of(copy)
    assert after.declared == before.declared
    assert after.digest != before.digest
    journal = copy / "headline" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b"\n")
    assert manifest_of(copy).declared != before.declared


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("../out.json", tarfile.REGTYPE, "which no archive does"),
        ("/etc/out.json", tarfile.REGTYPE, "which no archive does"),
        ("headline/run.json", tarfile.SYMTYPE, "which no archive does"),
        ("headline/long.json", tarfile.GNUTYPE_LONGNAME, "which no archive does"),
        ("headline/more.json", tarfile.XHDTYPE, "which no archive does"),
        ("headline/other.json", tarfile.REGTYPE, "does not contain what its manifest says"),
    ],
)
def test_archive_with_unsafe_or_unlisted_members_is_refused(
    name: str, kind: bytes, said: str, row: Path, tmp_path: Path
) -> None:
    pack(row, tmp_path / "a.tar.gz")
    content = io.BytesIO(gzip.decompress((tmp_path / "a.tar.gz").read_bytes()))
    with tarfile.open(fileobj=content, mode="a") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, "/etc/passwd", 0
        archive.addfile(member)
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(content.getvalue()))
    with pytest.raises(RecordError, match=said):
        unpack(tmp_path / "b.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _header(kind: bytes, size: int) -> bytes:
    """Return the header of an archive's member as it stands in a file."""
    member = tarfile.TarInfo("headline/run.json")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def test_small_archive_with_a_huge_long_name_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size is not among those of the members, and it would be read as a whole."""
    bomb = tmp_path / "bomb.tar.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(_header(tarfile.GNUTYPE_LONGNAME, 2**26))
        file.write(bytes(2**26))
    assert bomb.stat().st_size < 2**20
    read_bytes = 0
    real = gzip.GzipFile.read

    def counted_read(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        nonlocal read_bytes
        content = real(self, size)
        read_bytes += len(content)
        return content

    monkeypatch.setattr(gzip.GzipFile, "read", counted_read)
    with pytest.raises(RecordError, match="which no archive does"):
        unpack(bomb, tmp_path / "out")
    assert 0 < read_bytes <= 2**10


@pytest.mark.parametrize(
    "content",
    [
        (_header(tarfile.GNUTYPE_LONGNAME, 2) + b"a".ljust(512, b"\0")) * 2000 + bytes(1024),
        _header(tarfile.REGTYPE, 2**34),
        _header(tarfile.REGTYPE, 10) + b"{}",
        _header(tarfile.REGTYPE, 0)[:100],
        b"",
    ],
    ids=["chain of long names", "too large", "cut off", "half a header", "empty"],
)
def test_archive_with_headers_that_lie_is_refused_with_one_sentence(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content))
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(RecordError, match=r"which no archive|is not an archive|is larger than"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    with pytest.raises(RecordError, match=r"which no archive|is not an archive|is larger than"):
        add_images(tmp_path / "a.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_changed_archives_and_files_that_are_not_archives_are_refused(
    row: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(row, copy)
    pack(copy, tmp_path / "a.tar.gz")
    content = gzip.decompress((tmp_path / "a.tar.gz").read_bytes())
    changed = content.replace(b'"toy-v1"', b'"toy-v2"')
    assert changed != content
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(changed))
    with pytest.raises(RecordError, match=r"row.json is not what its manifest says"):
        unpack(tmp_path / "b.tar.gz", tmp_path / "out")
    (tmp_path / "c.tar.gz").write_bytes(b"nothing")
    with pytest.raises(RecordError, match="is not an archive that `dent pack` wrote"):
        unpack(tmp_path / "c.tar.gz", tmp_path / "out")
    packed = bytearray((tmp_path / "a.tar.gz").read_bytes())
    packed[len(packed) // 2 :] = bytes(len(packed) - len(packed) // 2)
    (tmp_path / "zeros.tar.gz").write_bytes(packed)
    with pytest.raises(RecordError, match="is not an archive that `dent pack` wrote"):
        unpack(tmp_path / "zeros.tar.gz", tmp_path / "out")
    (tmp_path / "d.tar").write_bytes(content)
    with pytest.raises(RecordError, match=r"is of images, and contains manifest.json"):
        add_images(tmp_path / "d.tar", tmp_path / "out")
    with pytest.raises(RecordError, match=r"is not a run folder: it has no run.json"):
        pack(tmp_path / "nothing", tmp_path / "e.tar.gz")


@pytest.mark.parametrize("damage", DAMAGES)
def test_images_that_do_not_match_the_journal_are_refused(
    damage: str, row: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(row, copy)
    image = sorted((copy / "headline" / "adversarial").iterdir())[0]
    DAMAGES[damage](image)
    ran = dent("pack", str(copy), "-o", str(tmp_path / "a.tar.gz"))
    assert ran.code == 2
    assert f"{image} is " in ran.err
    assert "Nothing was packed" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_an_older_archive_of_images_does_not_stay_beside_other_records(
    row: Path, tmp_path: Path
) -> None:
    packed = pack(row, tmp_path / "a.tar.gz")
    assert packed.images is not None
    assert packed.notes == ()
    shutil.copytree(row, tmp_path / "bare", ignore=shutil.ignore_patterns("adversarial"))
    ran = dent("pack", str(tmp_path / "bare"), "-o", str(tmp_path / "a.tar.gz"))
    assert ran.code == 0
    assert f"Removed {packed.images}" in ran.err
    assert not packed.images.exists()
    assert pack(tmp_path / "bare", tmp_path / "a.tar.gz").removed is None


def test_every_file_is_read_once_so_archives_match_a_manifest_while_a_run_goes_on(
    row: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(row, copy)
    reads: Counter[Path] = Counter()

    def growing(path: Path, *more: int) -> bytes:
        reads[path] += 1
        content = read(path, *more)
        if path.name == "journal.jsonl":
            path.write_bytes(content + b"\n")
        return content

    monkeypatch.setattr(packing, "read", growing)
    packed = pack(copy, tmp_path / "a.tar.gz")
    assert set(reads.values()) == {1}
    monkeypatch.undo()
    assert unpack(packed.records, tmp_path / "out") == packed.manifest


def test_archive_name_that_does_not_end_in_tar_gz_is_refused(row: Path, tmp_path: Path) -> None:
    for name in ("x.zip", "x.tar", "x.gz", "x"):
        with pytest.raises(ConfigError, match=rf"must end in \.tar\.gz, got '{name}'"):
            pack(row, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_listed_is_refused_and_not_left_out(
    row: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deny(monkeypatch, row / "headline" / "adversarial")
    with pytest.raises(RecordError, match=r"headline/adversarial cannot be looked into: Perm"):
        pack(row, tmp_path / "a.tar.gz")


def test_pack_command_reports_the_files_and_the_digest(row: Path, tmp_path: Path) -> None:
    ran = dent("pack", str(row), "-o", str(tmp_path / "a.tar.gz"), "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["images"] == str(tmp_path / "a.images.tar")
    assert "headline/journal.jsonl" in told["files"]
    shown = dent("pack", str(row), "-o", str(tmp_path / "a.tar.gz")).out
    assert manifest_of(row).digest in shown
