"""Downloads of weights over HTTP, from a server of the test."""

import argparse
import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dent.errors import WeightsError
from dent.models.fetching import Download, fetch_url

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
