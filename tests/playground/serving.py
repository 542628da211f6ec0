"""Serve the playground on a local port, and send it the requests of browsers and attackers."""

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from PIL import Image

from dent.serving import timed_http
from dent.support import listening

API = "/gradio_api"
PATIENCE = 30.0
USUAL = (
    *("resnet-14-2-linf", "dent+", "linf", 8, "pgd", ["transfer", "stop-gradient", "unrolled"]),
    *(8, 6, 16, "batch", 0),
)

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="no gradio here: an extra")


class Site:
    """The served page, and the parts of its server that tests inspect."""

    def __init__(self, app: Any, url: str) -> None:
        self.app, self.url = app, url
        guard = next(each for each in app.user_middleware if "turns" in each.kwargs)
        self.turns, self.visitors = guard.kwargs["turns"], guard.kwargs["visitors"]
        self.gradio = app.routes[-1].app
        self.blocks = self.gradio.get_blocks()

    def function(self, name: str) -> int:
        """Return the number by which the page calls a function."""
        return next(at for at, each in self.blocks.fns.items() if each.name == name)

    def files(self) -> set[Path]:
        return {path for path in self.visitors.cache.rglob("*") if path.is_file()}


class Browser:
    """A visitor, with the cookie of the page and one session."""

    def __init__(self, site: Site, **settings: Any) -> None:
        self.site = site
        self.http = httpx.Client(base_url=site.url, timeout=PATIENCE, **settings)
        self.session = secrets.token_hex(6)

    def open(self) -> "Browser":
        assert self.http.get("/").status_code == 200
        return self

    def join(self, name: str, *data: Any, **more: Any) -> httpx.Response:
        """Call a function of the page."""
        asked = {
            "data": list(data),
            "fn_index": self.site.function(name),
            "session_hash": self.session,
        }
        return self.http.post(f"{API}/queue/join", json=asked | more)

    def upload(self, content: bytes, name: str = "mine.png") -> httpx.Response:
        return self.http.post(f"{API}/upload", files={"files": (name, content)})

    def listen(self) -> Any:
        return self.http.stream(
            "GET", f"{API}/queue/data", params={"session_hash": self.session}, timeout=PATIENCE
        )

    def completed(self) -> dict[str, Any]:
        """Listen until the called functions have ended; return the last completion message."""
        last: dict[str, Any] = {}
        with self.listen() as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    message = json.loads(line.removeprefix("data: "))
                    if message["msg"] == "process_completed":
                        last = message
        return last


def png(side: int = 40) -> bytes:
    content = BytesIO()
    Image.linear_gradient("L").resize((side, side)).save(content, "png")
    return content.getvalue()


def file_data(path: object, **more: Any) -> dict[str, Any]:
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}, **more}


def eventually(what: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if what():
            return True
        time.sleep(0.02)
    return False


@contextmanager
def served(**settings: Any) -> Iterator[Site]:
    """Serve the page in a thread until the block ends."""
    application = import_module("dent.playground.app").application  # reads the environment
    with listening.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        app = application("127.0.0.1", port, **settings)
        config = uvicorn.Config(
            app,
            log_level="error",
            ws="none",
            http=timed_http.TimedProtocol,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield Site(app, f"http://127.0.0.1:{port}")
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
