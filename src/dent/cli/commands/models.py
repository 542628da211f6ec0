"""`dent models`: list the models."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.padding import Padding

from dent.cli import completion, console, options


def models_command(
    word: Annotated[
        str | None,
        typer.Argument(
            help="Only models with this text in their name, from every source.",
            autocompletion=completion.models,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="All models of robustbench, torchvision or timm; of hf, those on this machine.",
            autocompletion=completion.catalogues,
        ),
    ] = None,
    as_json: Annotated[bool, options.as_json(what="the list")] = False,
) -> None:
    """List the models that `--model` takes by name.

    Without arguments: the bundled models and the paper's. `--model` also takes a family name such
    as resnet-26-4 with --weights FILE, and your own package.module:factory.
    """
    from dent.cli.output import models

    names, missing = models.chosen(word, source)
    entries, unreadable = models.entries(names)
    for name, problem in unreadable.items():
        console.note(f"Not listed: {name}: {problem}")
    for error in missing:
        console.note(f"Not searched: {error}")
    if as_json:
        console.print_json([asdict(entry) for entry in entries])
        return
    for entry in entries:
        console.say(entry.name, style="bold")
        console.OUT.print(Padding(escape(models.about(entry)), (0, 0, 0, 4)))
    if not entries:
        console.note(models.nothing_found(word, source))
    models.print_sources(entries)
    if word is None and source is None:
        console.say(
            "More: `dent models --source robustbench`, torchvision or timm, and `dent models WORD` "
            "to search all of them. From the Hugging Face hub: `--model hf/ORG/NAME`."
        )
