"""Downloads of weights over HTTP, from a server of the test."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

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
