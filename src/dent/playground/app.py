"""The page as a web application, which keeps the browser from other hosts."""

from typing import Any, Final

import gradio as gr
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders

from dent.playground import render
from dent.playground.images import MOST_BYTES
from dent.playground.page import build

_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; frame-ancestors 'self'"
)
"""gradio compiles its templates in the browser; nothing comes from, or goes to, another host."""
_FONT: Final = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
_MONO: Final = ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


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


def application(host: str, port: int) -> FastAPI:
    """Make the application.

    Args:
        host: Where it will be served.
        port: The same.
    """
    app = FastAPI(openapi_url=None)
    app.add_middleware(_Policy)
    gr.mount_gradio_app(
        app,
        build().queue(max_size=16),
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
        theme=gr.themes.Default(primary_hue="blue", font=_FONT, font_mono=_MONO),
        head=f"<style>{render.style()}</style>",
    )
    return app
