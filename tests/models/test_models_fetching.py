"""Downloads of weights over HTTP, from a server of the test."""

import argparse
import hashlib
import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from dent.errors import WeightsError
from dent.models import fetching, robustbench_source
from dent.models.fetching import Download, fetch_url, run_with_limit

CONTENT = bytes(range(256)) * 8
Serve = Callable[[dict[str, str], bytes], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that starts a server of one answer, and returns its address."""
    servers = []

    def start(headers: dict[str, str], body: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.handle_request, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/weights"

    yield start
    for server in servers:
        server.server_close()


@pytest.mark.parametrize("headers", [{"Content-Length": str(len(CONTENT))}, {}])
def test_a_complete_download_gets_its_name(
    serve: Serve, tmp_path: Path, headers: dict[str, str]
) -> None:
    file = tmp_path / "new" / "weights"
    assert Download("m", file, serve(headers, CONTENT), None, fetch_url).obtain() == file
    assert file.read_bytes() == CONTENT


def test_a_download_that_ends_early_is_refused_and_leaves_no_file(
    serve: Serve, tmp_path: Path
) -> None:
    url = serve({"Content-Length": str(len(CONTENT))}, CONTENT[:500])
    with pytest.raises(WeightsError, match=r"ConnectionError: only 500 of 2048 bytes arrived"):
        Download("m", tmp_path / "weights", url, None, fetch_url).obtain()
    assert list(tmp_path.iterdir()) == []


# --- downloads of unknown length ----------------------------------------------------------------

STATE = {"weight": torch.arange(600.0).reshape(20, 30), "bias": torch.ones(7)}


def saved(content: Any, *, old: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


WHOLE = {
    "w.pt": saved(STATE),
    "w.pth.tar": saved({"state_dict": STATE, "args": argparse.Namespace(lr=0.1)}),
    "old.pt": saved(STATE, old=True),
    "w.safetensors": safetensors.torch.save(STATE),
    "config.json": b'{"architectures": ["ViT"]}',
}


def download(folder: Path, name: str, content: bytes, digest: str | None = None) -> Path:
    def fetch(url: str, path: Path) -> None:
        path.write_bytes(content)

    return Download("m", folder / name, "https://example.org/w", digest, fetch).obtain()


@pytest.mark.parametrize("name", WHOLE)
def test_weights_of_unknown_length_are_kept_only_if_they_are_whole(
    tmp_path: Path, name: str
) -> None:
    whole = WHOLE[name]
    for length in (0, 1, 10, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        with pytest.raises(WeightsError, match=rf"could not be downloaded.*{name} (is|contains) "):
            download(tmp_path, name, whole[:length])
        assert list(tmp_path.iterdir()) == []
    assert download(tmp_path, name, whole).read_bytes() == whole
    assert list(tmp_path.iterdir()) == [tmp_path / name]


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "config.json"])
def test_a_web_page_is_not_kept_as_weights(tmp_path: Path, name: str) -> None:
    page = b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>"
    said = "damaged or not a JSON" if name == "config.json" else r"a web page \(a login, a limit"
    with pytest.raises(WeightsError, match=rf"\(WeightsError: {name} .*{said}") as caught:
        download(tmp_path, name, page)
    assert "Delete" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_download_with_another_digest_is_not_kept(tmp_path: Path) -> None:
    digest = hashlib.sha256(WHOLE["w.pt"]).hexdigest()
    other = saved({**STATE, "bias": torch.zeros(7)})
    with pytest.raises(WeightsError, match=f"expected SHA-256 {digest[:8]}, got "):
        download(tmp_path, "w.pt", other, digest[:8])
    assert list(tmp_path.iterdir()) == []
    download(tmp_path, "w.pt", WHOLE["w.pt"], digest[:8])


def test_a_download_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    sync = os.fsync

    def record(handle: int) -> None:
        synced.append([path.name for path in tmp_path.iterdir()])
        sync(handle)

    monkeypatch.setattr(os, "fsync", record)
    download(tmp_path, "w.pt", WHOLE["w.pt"])
    ((name,),) = synced
    assert name.endswith(".part")


# --- servers that never answer -------------------------------------------------------------------


@pytest.fixture
def silent_port() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def refused(file: Path, url: str, fetch: Callable[[str, Path], None]) -> str:
    """Return the message of a download that fails, and check that no file is left."""
    with pytest.raises(WeightsError) as caught:
        Download("m", file, url, None, fetch).obtain()
    assert list(file.parent.iterdir()) == []
    message = str(caught.value)
    assert f"  file:   {file}\n  from:   {url}\n" in message
    assert "What to do: download that file with a browser" in message
    return message


def test_a_server_that_never_answers_ends_a_download(
    silent_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_SECONDS", 0.2)
    url = f"http://127.0.0.1:{silent_port}/weights"
    said = refused(tmp_path / "weights", url, fetch_url)
    assert "(TimeoutError: nothing arrived for 0.2 s)" in said


def test_a_connection_that_falls_silent_ends_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
            ended.wait(30)
            connection.close()

        ended = threading.Event()
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/weights"
        said = refused(tmp_path / "weights", url, fetch_url)
        ended.set()
        thread.join()
    assert "(TimeoutError: nothing arrived for 0.2 s" in said


def test_google_drive_that_never_answers_ends_a_download(
    silent_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gdown")
    monkeypatch.setattr(robustbench_source, "_DRIVE_SECONDS", 0.2)
    for variable in ("https_proxy", "HTTPS_PROXY"):  # leads gdown to the server of this test
        monkeypatch.setenv(variable, f"http://127.0.0.1:{silent_port}")
    for variable in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    url = "https://drive.google.com/uc?id=1"
    said = refused(tmp_path / "weights", url, robustbench_source._fetch)
    assert "(TimeoutError: nothing arrived for 0.2 s)" in said


def test_a_download_that_arrives_slowly_is_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, seconds, whole = count(), count(), threading.Event()

    def grown(folder: Path) -> int:
        size = next(looks)
        if size == 10:
            whole.set()
        return size

    monkeypatch.setattr(fetching, "_size", grown)
    monkeypatch.setattr(fetching, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    run_with_limit(lambda: whole.wait(60), tmp_path, 1.5)
    assert next(looks) > 10
