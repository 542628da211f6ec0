"""The page as a web application that keeps the browser from contacting other hosts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import gradio as gr
from fastapi import FastAPI
from gradio.utils import get_upload_folder
from starlette.datastructures import MutableHeaders

from dent.playground import render
from dent.playground.guard import RequestGuard
from dent.playground.images import MOST_BYTES
from dent.playground.page import build
from dent.playground.turns import MOST_SECONDS, Turns
from dent.playground.visitors import Visitors
from dent.support.listening import Hosts

_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; frame-ancestors 'self'"
)
"""The content security policy: nothing is loaded from or sent to other hosts.

`unsafe-eval` is needed because gradio compiles its templates in the browser."""
_FONT: Final = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
_MONO: Final = ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

_MOST_SESSIONS: Final = 128
"""Number of sessions whose state is kept; each state may hold some megabytes of images."""
_MOST_EVENTS: Final = 64
"""Largest number of events in gradio's queue. Runs that wait for their turn do not count."""


class _Policy:
    """An ASGI middleware that adds the content security policy to every response."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = _POLICY
            await send(message)

        await self._app(scope, receive, sending if scope["type"] == "http" else send)


def application(
    host: str, port: int, *, allowed: Sequence[str] = (), seconds: float = MOST_SECONDS
) -> FastAPI:
    """Return the application.

    gradio keeps uploads in its cache, the folder `GRADIO_TEMP_DIR`. The caller must set it to a
    private folder, and empty that at the end.

    Args:
        host: Host at which the application will be served.
        port: Its port.
        allowed: Names that requests may give as their host, in addition to this machine's.
        seconds: Seconds that a run may take.
    """
    visitors, turns = Visitors(Path(get_upload_folder())), Turns(seconds)
    page = build(turns, visitors)
    # gradio checks the files that a client names only if this is set, and mounting does not set it
    # (docs/design/gradio-mount.md). The guard has already checked them.
    page.has_launched = True
    page.state_session_capacity = _MOST_SESSIONS
    app = FastAPI(openapi_url=None)
    app.add_middleware(
        RequestGuard,
        visitors=visitors,
        turns=turns,
        hosts=Hosts(host, allowed),
        most_bytes=2 * MOST_BYTES,
    )
    app.add_middleware(_Policy)
    gr.mount_gradio_app(
        app,
        page.queue(max_size=_MOST_EVENTS),
        path="/",
        server_name=host,
        server_port=port,
        footer_links=[],
        show_error=False,
        max_file_size=2 * MOST_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        theme=gr.themes.Default(primary_hue="blue", font=_FONT, font_mono=_MONO),
        head=f"<style>{render.style()}</style>",
    )
    return app
