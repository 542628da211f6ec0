"""`dent models`: list the registry."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.padding import Padding

from dent import models
from dent.cli.console import OUT, print_json
from dent.errors import MissingExtraError
from dent.models import Accuracy, ModelInfo

_CATALOGUES = ("robustbench", "torchvision", "timm")


def models_command(
    word: Annotated[
        str | None,
        typer.Argument(help="Only models with this in their name, of every source."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="All of robustbench, torchvision or timm."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the models that `--model` takes by name, and what is known of each.

    Without arguments: those that come with this package, and those of the paper. Besides these,
    `--model` takes a family name such as resnet-26-4 with --weights FILE, and
    package.module:factory of your own.
    """
    names, missing = _chosen(word, source)
    entries = [models.info(name) for name in names]
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    for entry in entries:
        OUT.print(f"[bold]{escape(entry.name)}[/]", soft_wrap=True)
        OUT.print(Padding(escape(_about(entry)), (0, 0, 0, 4)))
    _print_sources(entries)
    for error in missing:
        OUT.print(f"Not searched: {error}", markup=False, soft_wrap=True)
    if word is None and source is None:
        OUT.print(
            "More: `dent models --source robustbench`, torchvision or timm, and `dent models WORD` "
            "to search all of them.",
            markup=False,
            soft_wrap=True,
        )


def _chosen(word: str | None, source: str | None) -> tuple[list[str], list[MissingExtraError]]:
    """Names to list, and what could not be searched."""
    if word is None or source is not None:
        names = models.names(source)
        return [name for name in names if (word or "").lower() in name.lower()], []
    found, missing = list(models.names()), []
    for catalogue in _CATALOGUES:
        try:
            found += models.names(catalogue)
        except MissingExtraError as error:
            missing.append(error)
    return [name for name in dict.fromkeys(found) if word.lower() in name.lower()], missing


def _about(entry: ModelInfo) -> str:
    size = "" if entry.size is None else f" ({entry.size / 1e6:.1f} MB)"
    facts = [
        entry.dataset,
        entry.threat or "nominal",
        f"here{size}" if entry.present else f"not here{size}",
        *(_describe(accuracy, entry.threat) for accuracy in entry.accuracies),
    ]
    return ", ".join(facts) + ("" if entry.accuracies else ", accuracy not stated")


def _print_sources(entries: list[ModelInfo]) -> None:
    """Where weights and accuracies come from, once for all models that say the same."""
    weights: dict[str, list[str]] = {}
    measured: dict[str, list[str]] = {}
    for entry in entries:
        weights.setdefault(entry.source, []).append(entry.name)
        for accuracy in entry.accuracies:
            measured.setdefault(accuracy.provenance, []).append(entry.name)
    for what, by_source in (("Weights from", weights), ("Accuracy:", measured)):
        for text, named in by_source.items():
            which = list(dict.fromkeys(named))
            shown = which[0] if len(which) == 1 else f"{len(which)} models, first {which[0]}"
            OUT.print(f"{what} {text} ({shown})", markup=False, soft_wrap=True)


def _describe(accuracy: Accuracy, trained_for: str | None) -> str:
    what = "natural" if accuracy.threat is None else str(accuracy.attack)
    if accuracy.threat not in (None, trained_for):
        what += f" at {accuracy.threat}"
    return f"{what} {100 * accuracy.value:.1f}% of {accuracy.total}"
