"""`dent models`: list the registry."""

from dataclasses import asdict
from typing import Annotated

import typer

from dent import models
from dent.cli.console import OUT, print_json, print_table
from dent.models import Accuracy


def models_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the models that `--model` takes by name, and what is known of each.

    Besides these, `--model` takes a family name such as resnet-26-4 with --weights FILE, and
    package.module:factory of your own.
    """
    entries = [models.info(name) for name in models.names()]
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    rows = [
        (
            entry.name,
            entry.dataset,
            entry.threat or "nominal",
            f"{entry.size / 1e6:.1f} MB",
            "yes" if entry.present else "no",
            "; ".join(_describe(accuracy) for accuracy in entry.accuracies) or "not measured",
        )
        for entry in entries
    ]
    columns = ("model", "dataset", "trained for", "size", "present", "accuracy")
    print_table("Models", columns, rows)
    for entry in entries:
        for accuracy in entry.accuracies:
            OUT.print(f"{entry.name}, {_describe(accuracy)}: {accuracy.provenance}")


def _describe(accuracy: Accuracy) -> str:
    what = "natural" if accuracy.threat is None else f"{accuracy.attack} at {accuracy.threat}"
    return f"{what} {100 * accuracy.value:.1f}% of {accuracy.total}"
