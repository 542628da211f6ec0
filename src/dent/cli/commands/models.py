"""`dent models`: list the models."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.padding import Padding

from dent.cli import completion, options
from dent.cli.console import ERR, OUT, print_json


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
        ERR.print(f"Not listed: {name}: {problem}", markup=False, soft_wrap=True)
    for error in missing:
        ERR.print(f"Not searched: {error}", markup=False, soft_wrap=True)
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    for entry in entries:
        OUT.print(f"[bold]{escape(entry.name)}[/]", soft_wrap=True)
        OUT.print(Padding(escape(models.about(entry)), (0, 0, 0, 4)))
    if not entries:
        ERR.print(models.nothing_found(word, source), markup=False, soft_wrap=True)
    models.print_sources(entries)
    if word is None and source is None:
        OUT.print(
            "More: `dent models --source robustbench`, torchvision or timm, and `dent models WORD` "
            "to search all of them. From the Hugging Face hub: `--model hf/ORG/NAME`.",
            markup=False,
            soft_wrap=True,
        )
