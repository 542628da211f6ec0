"""Options that several commands share: their names and help texts.

Each function returns an option for `Annotated`. `panel` is the section of the help page. Defaults
are in the commands' signatures; `tests/cli/test_options.py` compares them.
"""

from typing import Any

import typer


def as_json(panel: str | None = None, what: str = "the result") -> Any:
    """Return `--json`, which prints one document instead of text.

    Args:
        panel: The section of the help page.
        what: What is printed, for the help text.
    """
    return typer.Option("--json", help=f"Print {what} as JSON.", rich_help_panel=panel)


def device(panel: str | None = None) -> Any:
    """Return `--device`, the device to compute on."""
    return typer.Option(
        help="cpu, cuda, cuda:1. Default: the GPU if there is one.", rich_help_panel=panel
    )


def data(panel: str | None = None, *others: str) -> Any:
    """Return `--data`, the folder of datasets.

    Args:
        panel: The section of the help page.
        others: Other names of the option.
    """
    return typer.Option(
        "--data",
        "--data-root",
        *others,
        help="Folder of datasets. For imagefolder: the folder itself. Default: $DENT_DATA, or "
        "data in ~/.cache/torch-dent",
        rich_help_panel=panel,
    )


def static_from(panel: str | None = None) -> Any:
    """Return `--static-from`, a run whose records of the static model are copied."""
    return typer.Option(
        help="Run folder of the same evaluation with another defense. Copies its records of the "
        "static model, so that they are not computed again.",
        rich_help_panel=panel,
    )


def to_the_end(panel: str | None = None) -> Any:
    """Return `--to-the-end`, which keeps a run of the suite from stopping early."""
    return typer.Option(
        "--to-the-end",
        help="Run every attack of the suite, even after a gain can no longer be shown.",
        rich_help_panel=panel,
    )


def reattack() -> Any:
    """Return `--reattack`, the number of attacks that a check runs again."""
    return typer.Option(help="Also run this many attacks again, or all.", metavar="K|all")


def reattack_nonce() -> Any:
    """Return `--reattack-nonce` of a check, which draws the attacks that it runs again."""
    return typer.Option(
        help="Random text that selects the attacks of --reattack. Choose it after you receive "
        "the run.",
        metavar="TEXT",
    )


def records_only() -> Any:
    """Return `--records-only`, for a check that loads no model."""
    return typer.Option(help="Check records and digests only. Load no model, submit nothing.")


def weights(panel: str | None = None) -> Any:
    """Return `--weights`, the weights of the model."""
    return typer.Option(
        help="Weights file: safetensors, or a torch file with weights only.", rich_help_panel=panel
    )


def typed(context: typer.Context) -> dict[str, str]:
    """Return the options that the user typed, as `--eps 4/255`, by the name of the parameter."""
    return {
        name: f"--{name.replace('_', '-')} {value}"
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) is not None
        and source.name == "COMMANDLINE"
    }


def seed(panel: str | None = None) -> Any:
    """Return `--seed`, the seed of all random draws."""
    return typer.Option(min=0, help="Seed of all random draws.", rich_help_panel=panel)


def norm(panel: str | None = None) -> Any:
    """Return `--norm`, the norm of the threat model."""
    return typer.Option(
        help="Norm of the threat model.", rich_help_panel=panel, case_sensitive=False
    )


def eps(panel: str | None = None) -> Any:
    """Return `--eps`, the radius of the threat model."""
    return typer.Option(
        help="Radius of the threat model. Default: 8/255 in linf, 0.5 in l2.",
        rich_help_panel=panel,
    )


def allow_code(panel: str | None = None) -> Any:
    """Return `--allow-code`, which allows code that records name."""
    return typer.Option(
        help="Import and call module:factory names, including those in the records of the run.",
        rich_help_panel=panel,
    )


def port(panel: str | None = None) -> Any:
    """Return `--port`, the port to listen on."""
    return typer.Option(
        min=0, max=65535, help="Port to listen on. 0 takes a free one.", rich_help_panel=panel
    )


def allowed_host(panel: str | None = None) -> Any:
    """Return `--allowed-host`, a host name that requests may use."""
    return typer.Option(
        metavar="NAME",
        help="Host name that requests may use, beside 127.0.0.1, localhost and --host, such as a "
        "proxy's. Repeatable. Default: no other on this machine; with another --host, any.",
        rich_help_panel=panel,
    )
