"""Find the path of a weights file, and try once to download the file if it is missing."""

from __future__ import annotations

import contextlib
import os
import secrets
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.error import URLError

from dent.errors import WeightsError
from dent.models.weights import check_download
from dent.support.plural import counted

ROOT_VARIABLE: Final = "DENT_MODELS"
_SECONDS: Final = 20.0
_LOOK_EVERY: Final = 0.1
_CHUNK: Final = 1 << 20
_REASON: Final = 600
"""Characters of an error that a message shows."""


def models_root() -> Path:
    """Return the folder for weights of other zoos.

    It is the environment variable DENT_MODELS, or `~/.cache/torch-dent/models` if that is not set.
    """
    return Path(os.environ.get(ROOT_VARIABLE) or "~/.cache/torch-dent/models").expanduser()


@dataclass(frozen=True)
class Download:
    """A weights file that can be downloaded.

    Attributes:
        model: The model's full name, for messages.
        file: The path on this machine.
        url: The address of the download.
        digest: SHA-256 (hex) or its first digits; `None` if none is published.
        fetch: A function that downloads `url` to a path.
    """

    model: str
    file: Path
    url: str
    digest: str | None
    fetch: Callable[[str, Path], None]

    def obtain(self) -> Path:
        """Return the path of the file, after downloading it if it is missing.

        A file that is already there is not checked. A download gets the file's name only when it is
        complete: `fetch` raised nothing, weights can be decoded and have the digest, and the
        content is on the disk.

        Raises:
            WeightsError: If the file is missing and cannot be downloaded; the message says which
                file to put where.
        """
        if self.file.is_file():
            return self.file
        part = self.file.with_name(f".{self.file.name}.{secrets.token_hex(4)}.part")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.fetch(self.url, part)
            check_download(part, self.file, self.digest)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, self.file)
        except Exception as error:  # downloaders of other packages may raise anything
            raise WeightsError(self._advice(error)) from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        return self.file

    def _advice(self, error: Exception) -> str:
        # gdown says only on a later line of its message that a limit was reached.
        reason = textwrap.shorten(str(error), _REASON, placeholder=" ...")
        digest = f"SHA-256 {self.digest}..." if self.digest else "none is published"
        if self.digest is not None and len(self.digest) == 64:
            digest = f"SHA-256 {self.digest}"
        return (
            f"the weights of {self.model!r} are not here and could not be downloaded "
            f"({type(error).__name__}: {reason}).\n"
            f"  file:   {self.file}\n"
            f"  from:   {self.url}\n"
            f"  digest: {digest}\n"
            "What to do: download that file with a browser or on another machine and put it "
            "there, or pass weights=FILE (--weights FILE)"
        )


def fetch_url(url: str, path: Path) -> None:
    """Download over HTTP(S), and give up if nothing arrives for 20 seconds.

    Raises:
        TimeoutError: Nothing arrived for 20 seconds.
        ConnectionError: The connection ended before the whole file arrived.
    """
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"expected an http(s) address, got {url}")
    arrived = 0
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer, path.open("xb") as file:  # noqa: S310 - the scheme is checked
            while chunk := answer.read(_CHUNK):  # ends without an error if the connection does
                arrived += file.write(chunk)
            expected = answer.headers.get("Content-Length")
    except (TimeoutError, URLError) as error:
        if isinstance(getattr(error, "reason", error), TimeoutError):
            raise _stalled(_SECONDS, arrived) from error
        raise
    if expected is not None and arrived != int(expected):
        raise ConnectionError(f"only {arrived} of {counted(int(expected), 'byte')} arrived")


def run_with_limit(download: Callable[[], object], folder: Path, seconds: float) -> None:
    """Run a download that has no time limit of its own, and give up if nothing arrives.

    The download runs in a thread. Nothing can end a thread, so a download that stalls stays behind
    until its connection ends or the process does.

    Args:
        download: Called without arguments; writes files to `folder`.
        folder: The folder that the files arrive in, used by nothing else.
        seconds: How long no byte may arrive.

    Raises:
        TimeoutError: Nothing arrived for that long.
        Exception: What `download` raised.
    """
    raised: list[Exception] = []

    def run() -> None:
        try:
            download()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="dent-download", daemon=True)
    thread.start()
    size, changed = 0, time.monotonic()
    while thread.is_alive():
        thread.join(_LOOK_EVERY)
        latest = _size(folder)
        if latest != size:
            size, changed = latest, time.monotonic()
        elif time.monotonic() - changed > seconds and thread.is_alive():
            raise _stalled(seconds, size)
    if raised:
        raise raised[0]


def _stalled(seconds: float, arrived: int) -> TimeoutError:
    before = f", {counted(arrived, 'byte')} before that" if arrived else ""
    return TimeoutError(f"nothing arrived for {seconds:g} s{before}")


def _size(folder: Path) -> int:
    size = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # renamed since the folder was listed
            size += path.stat().st_size
    return size
