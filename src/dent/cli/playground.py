"""`dent playground`: a page to try it."""

from typing import Annotated

import typer

from dent.cli import options
from dent.cli.console import OUT, print_json
from dent.support.extras import check


def playground_command(
    port: Annotated[int, options.port()] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to listen at; the default is for this machine alone.")
    ] = "127.0.0.1",
    allowed_host: Annotated[
        list[str] | None,
        options.allowed_host(),
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=1, help="Seconds that one run may compute.")
    ] = 300.0,
    as_json: Annotated[bool, options.as_json(what="the page's address")] = False,
) -> None:
    """Try it in a browser: attack an image, and watch what static and dent make of it.

    Pick a bundled image or drop one in, choose model, defense, attack and eps. Everything runs on
    this machine, on the models that the package carries. Ctrl-C ends it.
    """
    check("gradio", "the playground", extra="playground")
    from dent.playground import serve

    def ready(address: str) -> None:
        if as_json:
            print_json({"url": address})
        else:
            OUT.print(f"Open {address} in a browser. Ctrl-C ends it.", soft_wrap=True)

    serve(host, port, ready, allowed=allowed_host or (), seconds=time_limit)
