"""`dent playground`: a web page to attack an image."""

from typing import Annotated

import typer

from dent.cli import console, options
from dent.support.extras import check


def playground_command(
    port: Annotated[int, options.port()] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to listen on. The default accepts only this machine.")
    ] = "127.0.0.1",
    allowed_host: Annotated[
        list[str] | None,
        options.allowed_host(),
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=1, help="Largest duration of a run, in seconds.")
    ] = 300.0,
    as_json: Annotated[bool, options.as_json(what="the page's address")] = False,
) -> None:
    """Attack an image in a browser, and watch the static model and dent.

    Pick an image, a model, a defense, an attack and eps. Everything runs on this machine, with the
    bundled models. Ctrl-C ends it.

    Exit status 0: ended by Ctrl-C or SIGTERM. 2: refused, or failed with one message.
    """
    check("gradio", "the playground", extra="playground")
    from dent.playground import serve

    is_ready = False

    def ready(address: str) -> None:
        nonlocal is_ready
        is_ready = True
        if as_json:
            console.print_json({"url": address})
        else:
            console.say(f"Open {address} in a browser. Ctrl-C ends it.")

    try:
        serve(host, port, ready, allowed=allowed_host or (), seconds=time_limit)
    except KeyboardInterrupt:
        if not is_ready:
            raise
        console.note("Stopped.")
