"""Run the command line in the test process."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NamedTuple
from unittest import mock

import typer

from dent.cli.app import app, main
from dent.cli.console import ERR, OUT


class Ran(NamedTuple):
    """The exit status and the output of a command."""

    code: int
    out: str
    err: str


def commands() -> dict[str, Any]:
    """Map what the user types (`evaluate`, `board run`) to its click command."""
    found: dict[str, Any] = {}
    waiting = [("", typer.main.get_command(app))]
    while waiting:
        name, command = waiting.pop(0)
        inside = getattr(command, "commands", None)
        if inside is None:
            found[name] = command
        else:
            waiting += [(f"{name} {each}".strip(), inner) for each, inner in inside.items()]
    return found


def dent(*arguments: str) -> Ran:
    """Run `dent` and return its exit status and output; unexpected exceptions propagate."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with _said(arguments), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Ran(code, out.getvalue(), err.getvalue())


@contextmanager
def _said(arguments: tuple[str, ...]) -> Iterator[None]:
    before = [(console, console._width) for console in (OUT, ERR)]
    try:
        for console, _ in before:
            console.width = 220
        with mock.patch("sys.argv", ["dent", *arguments]):
            yield
    finally:
        for console, width in before:
            console._width = width
