"""Download runs from a URL in an object store, and mirror runs to it while they are written.

A run folder survives a crash because of locks and append-only files, and an object store has
neither. So a run is always written to a folder on this machine. New records are uploaded as whole
files: first the tensors, then the journal that refers to them.
"""

import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from dent.errors import ConfigError, DentError, DentWarning, MissingExtraError
from dent.evaluation.engine.progress import OnProgress, Progress
from dent.evaluation.records.folder import ASCENTS
from dent.evaluation.records.journal import CHALLENGES, JOURNAL
from dent.storage.disk import TEMPORARY
from dent.storage.errors import RecordError
from dent.storage.lock import HOLDER, LOCK
from dent.support.extras import installing, require
from dent.support.filenames import portable
from dent.support.plural import counted

_URL: Final = re.compile(r"([a-z][a-z0-9+.:-]+)://")
_LOCAL: Final = ("file", "local")
_TENSOR: Final = ".safetensors"
_EVERY: Final = 10.0


class Place:
    """The place where a run is written: a local folder, and its remote copy if there is one.

    Attributes:
        folder: The folder on this machine.
        name: The path or URL that the user gave.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name

    def watch(self, report: OnProgress | None) -> OnProgress | None:
        """Return the progress callback. That of a remote place also uploads records."""
        return report

    def push(self) -> None:
        """Upload the records that are not uploaded yet, if the place is remote."""

    def name_of(self, path: Path) -> str:
        """Return the path or URL, in the user's terms, of a path in the folder."""
        return f"{self.name}/{path.relative_to(self.folder).as_posix()}".removesuffix("/.")


class _Mirror(Place):
    """A local folder that is copied to a URL while a run writes to it."""

    def __init__(self, folder: Path, name: str, every: float) -> None:
        super().__init__(folder, name)
        self._remote = _Remote(name)
        self._every = every
        self._sent: dict[str, tuple[int, int]] = {}
        # The sizes that this process may have left there: two while an upload is not confirmed.
        self._journals: dict[str, set[int | None]] = {}
        self._last, self._done = time.monotonic(), -1

    def fetch(self) -> bool:
        """Download the remote files, and return whether there were any."""
        existed = self._remote.fetch(self.folder, tensors=True, ascents=True)
        self._sent = self._local()
        self._journals = {n: {size} for n, (size, _) in self._sent.items() if _is_journal(n)}
        return existed

    def watch(self, report: OnProgress | None) -> OnProgress:
        """Return a progress callback that also uploads records every few seconds.

        The first upload is before the first unit: it has all files but no record, so a kill within
        it leaves nothing that blocks the URL, and a URL that cannot be written to is found at once.
        """

        def watched(state: Progress) -> None:
            due = self._done < 0 or time.monotonic() - self._last >= self._every
            if state.done != self._done and due:
                self.push()
                self._last, self._done = time.monotonic(), state.done
            if report is not None:
                report(state)

        return watched

    def push(self) -> None:
        """Upload the records that are not uploaded yet.

        Raises:
            RecordError: The URL cannot be written to, or another process is writing to it.
        """
        local = self._local()
        changed = [name for name, state in local.items() if self._sent.get(name) != state]
        for name in filter(_is_journal, local if changed else ()):  # before any tensor
            self._refuse_another(name)
        for name in sorted(changed, key=_rank):
            self._put(name)
            self._sent[name] = local[name]
        for name in [name for name in self._sent if name not in local]:
            self._remote.remove(name)
            del self._sent[name]

    def _put(self, name: str) -> None:
        content = (self.folder / name).read_bytes()
        if not _is_journal(name):
            self._remote.put(name, content)
            return
        self._refuse_another(name)
        self._journals[name] = self._left(name) | {len(content)}
        self._remote.put(name, content)
        self._journals[name] = {len(content)}

    def _left(self, name: str) -> set[int | None]:
        """Return the sizes of a journal that this process may have left there; None for no file."""
        return self._journals.get(name, {None})

    def _refuse_another(self, name: str) -> None:
        remote_size, sizes = self._remote.size(name), self._left(name)
        if remote_size not in sizes:
            left = " or ".join(_said(size) for size in sorted(sizes, key=lambda size: size or 0))
            raise RecordError(
                f"{self.name} is being written to by another process: {name} has "
                f"{_said(remote_size)} there, and this one left it with {left}. "
                "Stop one of them, and run the same command again"
            )

    def _local(self) -> dict[str, tuple[int, int]]:
        """Return the size in bytes and modification time in ns of all files of the run, by name."""
        files = {}
        for path in self.folder.rglob("*"):
            internal = path.name in (LOCK, HOLDER) or path.name.startswith(TEMPORARY)
            if path.is_file() and not internal:
                state = path.stat()
                files[path.relative_to(self.folder).as_posix()] = (state.st_size, state.st_mtime_ns)
        return files


class _Remote:
    """The files under a URL, named by their paths relative to it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._files, root = _open(url)
        self._root = root.rstrip("/")

    def fetch(self, folder: Path, *, tensors: bool, ascents: bool) -> bool:
        """Download the files to a folder, and return whether there were any.

        Args:
            folder: The folder.
            tensors: Whether to download adversarial images.
            ascents: Whether to download what attacks computed on the static model.
        """
        with self._trouble("read"):
            self._files.invalidate_cache()
            paths = self._files.find(self._root)
            for path in paths:
                name = str(path)[len(self._root) :].lstrip("/")
                if not name or ".." in Path(name).parts:
                    raise RecordError(
                        f"{self._url} is a file, or contains a name {name!r}: it is not a run"
                    )
                is_ascent = ASCENTS in Path(name).parts[:-1]
                if ascents if is_ascent else tensors or not name.endswith(_TENSOR):
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    self._files.get_file(path, str(folder / name))
        return bool(paths)

    def put(self, name: str, content: bytes) -> None:
        """Write a whole file."""
        with self._trouble("write"):
            path = f"{self._root}/{name}"
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(path, content)

    def remove(self, name: str) -> None:
        """Remove a file."""
        with self._trouble("write"):
            self._files.rm_file(f"{self._root}/{name}")

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if it does not exist."""
        with self._trouble("read"):
            self._files.invalidate_cache()
            with suppress(FileNotFoundError):
                return int(self._files.info(f"{self._root}/{name}")["size"])
        return None

    @contextmanager
    def _trouble(self, verb: str) -> Iterator[None]:
        try:
            yield
        except RecordError:
            raise
        except Exception as error:  # every store has its own errors
            raise RecordError(
                f"cannot {verb} {self._url}: {type(error).__name__}: {error}. The earlier records "
                "there are safe: run the same command again when it can be reached"
            ) from error


def is_url(where: str) -> bool:
    """Return whether a text is a URL. This includes `file://`, which is used as a path."""
    return _URL.match(where) is not None


@contextmanager
def written(where: str, *, new: bool = False, every: float = _EVERY) -> Iterator[Place]:
    """Yield a folder to write a run to, and upload its files if the user gave a URL.

    For a path, this is the folder itself. For a URL, existing files are downloaded first, so that a
    run resumes. New records are uploaded every few seconds and at the end, even after an error.

    Args:
        where: A path or URL.
        new: Whether to refuse a URL at which files exist.
        every: Seconds between two uploads.

    Raises:
        ConfigError: This kind of URL is not supported.
        MissingExtraError: The URL needs a package that is not installed.
        RecordError: The URL cannot be read or written, or another process writes to it.
    """
    if not _remote(where):
        yield Place(_path(where), where)
        return
    scratch = Path(tempfile.mkdtemp(prefix="dent-"))
    sent = True
    try:
        mirror = _Mirror(scratch / _last_part(where), where.rstrip("/"), every)
        if mirror.fetch() and new:
            raise RecordError(f"{where} already exists: choose another place")
        sent = False
        try:
            with _called(mirror.folder, mirror.name):
                yield mirror
        except BaseException:
            sent = _sent_at_last(mirror)  # only warns: the error that ended the run matters more
            raise
        try:
            mirror.push()
            sent = True
        except RecordError as error:
            raise RecordError(f"{error}. {_lies_in(mirror)}") from error
        except BaseException:
            sent = _sent_at_last(mirror)
            raise
    finally:
        if sent:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def fetched(where: str, *, tensors: bool = True) -> Iterator[Path]:
    """Yield a folder to read a run from: the path itself, or a copy of the files at a URL.

    Args:
        where: A path or URL.
        tensors: Whether to download adversarial images, too.

    Raises:
        ConfigError: This kind of URL is not supported.
        MissingExtraError: The URL needs a package that is not installed.
        RecordError: There are no files at the URL, or they cannot be read.
    """
    if not _remote(where):
        yield _path(where)
        return
    with tempfile.TemporaryDirectory(prefix="dent-") as scratch:
        folder = Path(scratch) / _last_part(where)
        if not _Remote(where).fetch(folder, tensors=tensors, ascents=False):
            raise RecordError(f"there is nothing at {where}")
        with _called(folder, where.rstrip("/")):
            yield folder


@contextmanager
def _called(folder: Path, name: str) -> Iterator[None]:
    """Name a URL, not its temporary copy, in errors about the content of the copy."""
    try:
        yield
    except DentError as error:
        if not isinstance(error.__cause__, OSError):  # else the copy itself is the trouble
            error.args = tuple(
                each.replace(str(folder), name) if isinstance(each, str) else each
                for each in error.args
            )
        raise


def _sent_at_last(mirror: _Mirror) -> bool:
    try:
        mirror.push()
    except RecordError as error:
        warnings.warn(f"{error}. {_lies_in(mirror)}", DentWarning, stacklevel=2)
        return False
    return True


def _lies_in(mirror: _Mirror) -> str:
    return f"All records are in {mirror.folder}"


def _remote(where: str) -> bool:
    match = _URL.match(where)
    return match is not None and match[1] not in _LOCAL


def _path(where: str) -> Path:
    return Path(where.partition("://")[2] if is_url(where) else where)


def _last_part(where: str) -> str:
    return portable(where.rstrip("/").rpartition("/")[2]) or "run"


def _said(size: int | None) -> str:
    return "nothing" if size is None else counted(size, "byte")


def _is_journal(name: str) -> bool:
    return name.rpartition("/")[2] in (JOURNAL, CHALLENGES)


def _rank(name: str) -> tuple[int, str]:
    """Return the sort key of uploads: tensors, the journals that refer to them, then the rest."""
    return 0 if name.endswith(_TENSOR) else 1 if _is_journal(name) else 2, name


def _open(url: str) -> tuple[Any, str]:
    fsspec = require("fsspec", url, extra="ray")
    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingExtraError(
            f"{url} needs a package that is not installed: {error}. With pip: "
            f"{installing('s3fs')} for s3, gcsfs for gs, adlfs for az"
        ) from error
    except ValueError as error:
        protocols = ", ".join(sorted(fsspec.available_protocols()))
        raise ConfigError(
            f"{url} cannot be written to or read: {error}. Expected a path, or a URL of a store "
            f"that fsspec knows: {protocols}"
        ) from error
    return files, str(root)
