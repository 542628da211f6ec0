"""What the registry of models knows, in a terminal."""

from dent import models, names
from dent.cli.console import OUT
from dent.errors import MissingExtraError
from dent.models import ModelInfo
from dent.models.info import OnImages, by_images
from dent.support.rounding import percent
from dent.support.suggest import did_you_mean


def chosen(word: str | None, source: str | None) -> tuple[list[str], list[MissingExtraError]]:
    """Names to list, and what could not be searched."""
    if word is None or source is not None:
        listed = models.names(source)
        return [name for name in listed if (word or "").lower() in name.lower()], []
    found, missing = list(models.names()), []
    for catalogue in names.CATALOGUES:
        try:
            found += models.names(catalogue)
        except MissingExtraError as error:
            missing.append(error)
    return [name for name in dict.fromkeys(found) if word.lower() in name.lower()], missing


def none(word: str | None, source: str | None) -> str:
    """What to say where no model is listed."""
    known = {name.rpartition("/")[2].partition(".")[0] for name in models.names()}
    for each in names.CATALOGUES if source is None else [source]:
        known |= {name.rpartition("/")[2].partition(".")[0] for name in names.catalogue(each)}
    where = "" if source is None else f" of {source}"
    return f"No model{where} has {word!r} in its name.{did_you_mean(word or '', sorted(known))}"


def about(entry: ModelInfo) -> str:
    """What is known of a model, in a line."""
    size = "" if entry.size is None else f" ({entry.size / 1e6:.1f} MB)"
    facts = [
        entry.dataset,
        entry.threat or "nominal",
        f"here{size}" if entry.present else f"not here{size}",
        *(_describe(one, entry.threat) for one in by_images(entry.accuracies)),
    ]
    return ", ".join(facts) + ("" if entry.accuracies else ", accuracy not stated")


def print_sources(entries: list[ModelInfo]) -> None:
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


def _describe(measured: OnImages, trained_for: str | None) -> str:
    """`natural 79.7% and PGD-20 62.5% of 512`: what was measured on the same images."""
    said = [] if measured.natural is None else [f"natural {percent(measured.natural.value)}"]
    for each in measured.attacked:
        where = "" if each.threat == trained_for else f" at {each.threat}"
        said.append(f"{each.attack}{where} {percent(each.value)}")
    *most, last = said
    return (f"{', '.join(most)} and {last}" if most else last) + f" of {measured.total}"
