"""Print the models of the registry and the facts that it knows about them."""

from collections.abc import Iterable

from dent import models, names
from dent.cli import console
from dent.errors import (
    ConfigError,
    DentError,
    MissingExtraError,
    UnsupportedModelError,
    WeightsError,
)
from dent.models import ModelInfo
from dent.models.info import OnImages, by_images
from dent.support.rounding import percent
from dent.support.suggest import did_you_mean


def chosen(word: str | None, source: str | None) -> tuple[list[str], list[MissingExtraError]]:
    """Return the names to list, and an error for each catalogue that could not be searched."""
    if word is None or source is not None:
        listed = models.names(source)
        return [name for name in listed if (word or "").lower() in name.lower()], []
    all_names, missing = list(models.names()), []
    for catalogue in names.CATALOGUES:
        try:
            all_names += models.names(catalogue)
        except MissingExtraError as error:
            missing.append(error)
    return [name for name in dict.fromkeys(all_names) if word.lower() in name.lower()], missing


def entries(listed: Iterable[str]) -> tuple[list[ModelInfo], dict[str, DentError]]:
    """Return what is known about models, and an error for each whose files cannot be read.

    For example, the Hugging Face cache on this machine may hold files of any kind of model.
    """
    known: list[ModelInfo] = []
    unreadable: dict[str, DentError] = {}
    for name in listed:
        try:
            known.append(models.info(name))
        except (ConfigError, UnsupportedModelError, WeightsError) as error:
            unreadable[name] = error
    return known, unreadable


def nothing_found(word: str | None, source: str | None) -> str:
    """Return the message for an empty list."""
    known_names = {name.rpartition("/")[2].partition(".")[0] for name in models.names()}
    for catalogue in names.CATALOGUES if source is None else [source]:
        known_names |= {
            name.rpartition("/")[2].partition(".")[0] for name in names.catalogue(catalogue)
        }
    of_source = "" if source is None else f" of {source}"
    hint = did_you_mean(word or "", sorted(known_names))
    return f"No model{of_source} has {word!r} in its name.{hint}"


def about(entry: ModelInfo) -> str:
    """Return what is known about a model: a line of facts, and one for each set of images."""
    size = "" if entry.size is None else f" ({entry.size / 1e6:.1f} MB)"
    place = "on this machine" if entry.present else "not downloaded"
    facts = ", ".join((entry.dataset, entry.threat or "nominal", f"{place}{size}"))
    accuracies = [_describe(of_images, entry.threat) for of_images in by_images(entry.accuracies)]
    return "\n".join([facts, *(accuracies or ["accuracy not stated"])])


def print_sources(entries: list[ModelInfo]) -> None:
    """Print the sources of weights and accuracies; models with the same source share a line."""
    weights: dict[str, list[str]] = {}
    measured: dict[str, list[str]] = {}
    for entry in entries:
        weights.setdefault(entry.source, []).append(entry.name)
        for accuracy in entry.accuracies:
            measured.setdefault(accuracy.provenance, []).append(entry.name)
    for heading, by_source in (("Weights:", weights), ("Accuracy:", measured)):
        for source, models_of in by_source.items():
            distinct = list(dict.fromkeys(models_of))
            shown = (
                distinct[0]
                if len(distinct) == 1
                else f"{len(distinct)} models, first {distinct[0]}"
            )
            console.say(f"{heading} {source} ({shown})")


def _describe(measured: OnImages, trained_for: str | None) -> str:
    """Return accuracies on the same images, such as `clean 79.7% and PGD-20 62.5% of 512`."""
    figures = [] if measured.natural is None else [f"clean {percent(measured.natural.value)}"]
    for attacked in measured.attacked:
        at_threat = "" if attacked.threat == trained_for else f" at {attacked.threat}"
        figures.append(f"{attacked.attack}{at_threat} {percent(attacked.value)}")
    *others, last = figures
    return (f"{', '.join(others)} and {last}" if others else last) + f" of {measured.total}"
