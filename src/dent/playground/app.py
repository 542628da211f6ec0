"""The page as a web application, which keeps the browser from other hosts."""

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
"""gradio compiles its templates in the browser; nothing comes from, or goes to, another host."""
_FONT: Final = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
_MONO: Final = ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

_MOST_SESSIONS: Final = 128
"""Number of sessions whose state is kept, each up to some megabytes of images."""
_MOST_EVENTS: Final = 64
"""Number of waiting events, beside runs that wait for their turn."""


class _Policy:
    """Adds the policy to every answer."""

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
    """Make the application.

    What visitors upload lies in gradio's cache, the folder `GRADIO_TEMP_DIR`: give it a private
    one, and empty it at the end.

    Args:
        host: Where it will be served.
        port: The same.
        allowed: Names that requests may give as their host, beside this machine's.
        seconds: That a run may take.
    """
    visitors, turns = Visitors(Path(get_upload_folder())), Turns(seconds)
    page = build(turns, visitors)
    # gradio looks at the files that a client names only where this is set, which mounting does not
    # do (docs/design/gradio-mount.md); the guard has looked at them before.
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
