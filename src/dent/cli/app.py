"""The command line's entry point: its commands and its exit statuses."""

import signal
import sys
import traceback
from typing import Final, NoReturn

import typer

from dent import __version__
from dent.cli import console
from dent.cli.commands.board import board_app
from dent.cli.commands.challenge import challenge_command
from dent.cli.commands.data import data_command
from dent.cli.commands.demo import demo_command
from dent.cli.commands.evaluate import evaluate_command
from dent.cli.commands.merge import merge_command
from dent.cli.commands.models import models_command
from dent.cli.commands.paper import paper_command
from dent.cli.commands.playground import playground_command
from dent.cli.commands.records import (
    list_command,
    pack_command,
    report_command,
    show_command,
    verify_command,
)
from dent.cli.commands.serve import serve_command
from dent.cli.commands.train import train_command
from dent.cli.typer_classes import AddressMayBeLeftOut, EndsWithItsReader, renamed
from dent.errors import DentError
from dent.support.blame import place
from dent.support.signals import Received, Terminated, as_interrupts

REFUSED = 2
"""Exit status when a command refused or failed."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells. After another signal: 128 plus its number."""

app = typer.Typer(
    name="dent",
    cls=EndsWithItsReader,
    help="Dynamic defenses against adversarial attacks, and their evaluation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo_command)
app.command("evaluate", cls=AddressMayBeLeftOut)(evaluate_command)
app.command("merge")(merge_command)
app.command("train")(train_command)
app.command("serve")(serve_command)
app.command("paper", cls=renamed({"--weights": "--weights-folder"}))(paper_command)
app.command("playground")(playground_command)
app.command("list")(list_command)
app.command("show")(show_command)
app.command("report")(report_command)
app.command("verify", cls=renamed({"--nonce": "--reattack-nonce"}))(verify_command)
app.command("pack")(pack_command)
app.add_typer(board_app)
app.command("challenge")(challenge_command)
app.command("data")(data_command)
app.command("models")(models_command)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        console.say(__version__)
        raise typer.Exit


_NO_GRADIENT: Final = (
    ". Defenses are called under torch.no_grad(): compute their gradients in `with "
    "torch.enable_grad():`"
)


def main() -> None:
    """Run a command. A refusal prints one message on standard error and exits with status 2.

    SIGTERM and SIGHUP end it like Ctrl-C, with exit status 143 and 129 instead of 130.
    """
    try:
        _run()
    except KeyboardInterrupt as second:  # while the first one was reported
        number = second.number if isinstance(second, Terminated) else signal.SIGINT
        sys.exit(128 + number)


def _run() -> None:
    with as_interrupts() as received, console.warnings_as_messages():
        try:
            app()
        except DentError as error:
            received.ignore()
            _refuse(str(error), place(error, installed=False))
        except SystemExit as end:
            received.ignore()
            called_at = None if _is_of_typer(end) else place(end, installed=False)
            if called_at is not None:  # its status would pass for that of the command
                _refuse("code that is not torch-dent's called sys.exit()", called_at)
            if end.code == INTERRUPTED:  # typer's exit status for Ctrl-C
                _say_interrupted(received)
            raise
        except Exception as error:
            received.ignore()
            raised_at = place(error)
            if raised_at is not None:
                description = f"{type(error).__name__}: {error}".removesuffix(": ")
                advice = _NO_GRADIENT if "does not require grad" in str(error) else ""
                _refuse(f"code that is not torch-dent's raised {description}{advice}", raised_at)
            if not isinstance(error, OSError):
                raise  # a bug in torch-dent: show the traceback
            # For example a full disk behind standard output, or an impossible file name.
            name = "" if error.filename is None else f"{error.filename}: "
            _refuse(f"{name}{error.strerror or error}", None)


def _is_of_typer(end: SystemExit) -> bool:
    """Return whether typer ended the command, wherever it is installed."""
    frames = [frame for frame, _ in traceback.walk_tb(end.__traceback__)]
    name = frames[-1].f_globals.get("__name__", "")
    return str(name).partition(".")[0] in ("typer", "click")


def _refuse(message: str, raised_at: str | None) -> NoReturn:
    if raised_at is not None:
        message += f"\n  raised at {raised_at}"
    console.note(f"dent: {message}", style="red")
    sys.exit(REFUSED)


def _say_interrupted(received: Received) -> NoReturn:
    name = "" if received.number is None else f" by {signal.Signals(received.number).name}"
    console.note(f"dent: interrupted{name}", style="red")
    sys.exit(INTERRUPTED if received.number is None else 128 + received.number)
