"""Options that several commands take, declared once: what they are called, and what help says.

Each function returns what `Annotated` wants; its `panel` is where help lists the option. Defaults
stand in the commands' signatures; `tests/cli/test_options.py` holds them to each other.
"""

from typing import Any

import typer


def as_json(panel: str | None = None, what: str = "the result") -> Any:
    """`--json`: print one document instead of text.

    Args:
        panel: Where help lists it.
        what: That is printed.
    """
    return typer.Option("--json", help=f"Print {what} as JSON.", rich_help_panel=panel)


def device(panel: str | None = None) -> Any:
    """`--device`: where to compute."""
    return typer.Option(help="cpu, cuda, cuda:1. By default the GPU if any.", rich_help_panel=panel)


def data(panel: str | None = None) -> Any:
    """`--data`: where datasets are."""
    return typer.Option(
        "--data",
        "--data-root",
        help="Folder of datasets; with imagefolder, the folder itself.",
        rich_help_panel=panel,
    )


def weights(panel: str | None = None) -> Any:
    """`--weights`: of the model that is evaluated or served."""
    return typer.Option(
        help="Weights file: safetensors, or torch weights-only.", rich_help_panel=panel
    )


def seed(panel: str | None = None) -> Any:
    """`--seed`: of everything that is drawn."""
    return typer.Option(min=0, help="What every seed derives from.", rich_help_panel=panel)


def norm(panel: str | None = None) -> Any:
    """`--norm`: of the threat model."""
    return typer.Option(help="Norm.", rich_help_panel=panel, case_sensitive=False)


def eps(panel: str | None = None) -> Any:
    """`--eps`: of the threat model."""
    return typer.Option(help="Radius, as 8/255 or 0.5.", rich_help_panel=panel)


def port(panel: str | None = None) -> Any:
    """`--port`: to listen at."""
    return typer.Option(min=0, max=65535, help="0 takes a free one.", rich_help_panel=panel)


def allowed_host(panel: str | None = None) -> Any:
    """`--allowed-host`: what requests may call the server."""
    return typer.Option(
        metavar="NAME",
        help="Host name that requests may give, beside 127.0.0.1 and localhost: a proxy's. "
        "Repeatable.",
        rich_help_panel=panel,
    )
