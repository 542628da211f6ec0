"""Print the progress and the result of a training run."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dent.cli import console
from dent.support.plural import counted
from dent.support.rounding import percent
from dent.training import Recipe, TrainingProgress, TrainingResult
from dent.training.card_page import share


def announce_training(model: str, recipe: Recipe, images: int, dataset: str, folder: Path) -> None:
    """Print which training starts, unless a progress bar shows it."""
    if not console.ERR.is_terminal:
        console.note(
            f"Training {model} by {recipe.name} on {counted(images, 'image')} of {dataset}, "
            f"into {folder}."
        )


def training_json(result: TrainingResult, card: Path) -> dict[str, object]:
    """Return the result of a training run as plain JSON types."""
    return {
        "card": json.loads(card.read_text()),
        "folder": str(result.folder),
        "identity": result.spec.identity,
        "last": str(result.last),
        "best": str(result.best),
        "best_epoch": result.best_epoch,
        "stopped": result.stopped,
        "seconds": result.seconds,
        "metrics": result.metrics,
        "spec": result.spec.to_json(),
    }


def show_training(result: TrainingResult, card: Path) -> None:
    """Print the result of a training run."""
    final = result.metrics[-1]
    console.say(
        f"Epoch {final['epoch']}: {_accuracy(final)}. Best weights: epoch {result.best_epoch}."
    )
    if result.stopped:
        console.say(f"(!) Stopped by {result.stopped}")
    for accuracy in json.loads(card.read_text())["accuracies"]:
        attack = f"{accuracy['attack']} at {accuracy['threat']}" if accuracy["attack"] else "clean"
        console.say(f"  {attack}: {share(accuracy)}")
    console.say(f"Weights: {result.best} and {result.last}")
    console.say(f"Model card: {card}")


def _accuracy(line: dict[str, object]) -> str:
    total = int(str(line["watched_total"]))
    text = f"clean {percent(int(str(line['watched_natural'])) / total)}"
    if line["watched_robust"] is not None:
        text += f", under PGD {percent(int(str(line['watched_robust'])) / total)}"
    return f"{text} of {counted(total, 'watched image')}"


@contextmanager
def training_progress(recipe: Recipe) -> Iterator["_TrainingReport"]:
    """Show the progress of a training run: a bar in a terminal, otherwise lines."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console.ERR, disable=not console.ERR.is_terminal) as progress:
        yield _TrainingReport(progress, recipe)


class _TrainingReport:
    """A callback for progress: draws a bar in a terminal, otherwise prints lines.

    It prints one line at the start, one after each epoch, and one a minute in between.
    """

    def __init__(self, bar: Progress, recipe: Recipe) -> None:
        self._bar, self._recipe = bar, recipe
        self._task = bar.add_task("starting", total=None, figures="")
        self._watched: object = None
        self._said: float | None = None

    def __call__(self, state: TrainingProgress) -> None:
        figures = f"loss {state.loss:.3f}"
        if state.watched is not None:
            total = state.watched.total
            figures += f", clean {percent(state.watched.natural / total)}"
            if self._recipe.threat:
                figures += f", PGD {percent(state.watched.robust / total)}"
        self._bar.update(
            self._task,
            description=f"epoch {state.epoch}/{state.epochs}",
            completed=state.step,
            total=state.steps,
            figures=figures,
        )
        if not console.ERR.is_terminal and (state.watched is not self._watched or self._silent()):
            self._watched, self._said = state.watched, time.monotonic()
            position = f"[{state.step}/{state.steps}] epoch {state.epoch}/{state.epochs}"
            console.note(f"{position}, {figures}")

    def _silent(self) -> bool:
        """Return whether no line was printed during the last minute."""
        return self._said is None or time.monotonic() - self._said >= console.QUIET
