"""`dent train`: make a classifier to defend."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dent import training
from dent.cli import resolve, running
from dent.cli.console import ERR, OUT, print_json
from dent.training import Recipe, TrainingProgress, TrainingResult
from dent.training.card_page import share

_WHAT = "What is trained"
_HOW = "The recipe"
_RUN = "The run"


def train_command(
    recipe: Annotated[
        str,
        typer.Option(
            help="nominal, adversarial, trades (the paper's), or fast for CPUs; with --norm. Or a "
            "full name such as fast-linf.",
            rich_help_panel=_WHAT,
        ),
    ],
    model: Annotated[
        str,
        typer.Option(help="resnet-DEPTH-WIDTH or module:factory.", rich_help_panel=_WHAT),
    ] = "resnet-26-4",
    dataset: Annotated[
        str, typer.Option(help="Its train split is trained on.", rich_help_panel=_WHAT)
    ] = "cifar10",
    n: Annotated[
        int | None,
        typer.Option("--n", min=1, help="Only the first N images.", rich_help_panel=_WHAT),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights to start from; drawn by default.", rich_help_panel=_WHAT),
    ] = None,
    norm: Annotated[
        Literal["linf", "l2"] | None, typer.Option(help="Norm.", rich_help_panel=_HOW)
    ] = None,
    eps: Annotated[
        str | None, typer.Option(help="Radius, as 8/255 or 0.5.", rich_help_panel=_HOW)
    ] = None,
    step_size: Annotated[
        str | None, typer.Option(help="Length of an inner step.", rich_help_panel=_HOW)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Inner PGD steps.", rich_help_panel=_HOW)
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="N-FGSM's noise, in eps.", rich_help_panel=_HOW)
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="TRADES' weight.", rich_help_panel=_HOW)
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs.", rich_help_panel=_HOW)] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images a step.", rich_help_panel=_HOW)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Largest learning rate.", rich_help_panel=_HOW)
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Weight decay.", rich_help_panel=_HOW)
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(help="Decay of the weights' average.", rich_help_panel=_HOW),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="What every draw derives from.", rich_help_panel=_RUN)
    ] = 0,
    precision: Annotated[
        Literal["auto", "no", "bf16", "fp16"],
        typer.Option(help="auto is bf16 where hardware has it.", rich_help_panel=_RUN),
    ] = "auto",
    watched: Annotated[
        int,
        typer.Option(
            min=1,
            help="Last images of the test split that the guard watches.",
            rich_help_panel=_RUN,
        ),
    ] = 512,
    pgd: Annotated[
        int,
        typer.Option(
            min=0, help="Images that the card measures under PGD-20.", rich_help_panel=_RUN
        ),
    ] = 1000,
    autoattack: Annotated[
        int,
        typer.Option(
            min=0,
            help="Images that it measures under AutoAttack; 0 for none.",
            rich_help_panel=_RUN,
        ),
    ] = 256,
    device: Annotated[
        str | None, typer.Option(help="cpu keeps off the GPU.", rich_help_panel=_RUN)
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--data", help="Folder of datasets.", rich_help_panel=_RUN)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder; the same command resumes it. Default: runs/train/MODEL-RECIPE.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=_RUN)
    ] = False,
) -> None:
    """Train a classifier: nominal, adversarial (Madry et al.), TRADES, or fast on a CPU.

    Interrupt or kill it, and the same command goes on from the last minute, to the same weights.
    At the end the weights are measured and a model card is written beside them.
    """
    chosen = training.named(
        recipe,
        norm,
        eps=eps,
        step_size=step_size,
        steps=steps,
        noise=noise,
        beta=beta,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        ema=ema,
    )
    folder = out or Path("runs/train") / f"{model.replace(':', '.')}-{chosen.name}"
    handle = training.accelerator(device, precision)
    images = resolve.dataset(dataset, root, "train")
    watch = resolve.dataset(dataset, root)
    measured = training.Measured(pgd=pgd, autoattack=autoattack)
    training.check_measured(measured, watch, watched)
    try:
        with _bar(chosen) as report:
            result = training.train(
                model,
                chosen,
                images,
                watch,
                folder,
                handle,
                n=n,
                weights=weights,
                watched=watched,
                seed=seed,
                progress=report,
            )
        if not handle.is_main_process:
            return
        with running.progress() as measuring:
            card = training.write_card(
                result,
                watch,
                handle.device,
                measured,
                progress=measuring,
            )
    except KeyboardInterrupt:
        ERR.print(f"\nStopped. The same command goes on with what lies in {folder}.")
        raise
    if as_json:
        print_json(_plain(result, card))
    else:
        _show(result, card)


def _plain(result: TrainingResult, card: Path) -> dict[str, object]:
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
        "spec": json.loads(result.spec.model_dump_json()),
    }


def _show(result: TrainingResult, card: Path) -> None:
    final = result.metrics[-1]
    OUT.print(
        f"Epoch {final['epoch']}: {_accuracy(final)}. Best weights: epoch {result.best_epoch}.",
        markup=False,
    )
    if result.stopped:
        OUT.print(f"(!) Stopped by {result.stopped}", markup=False, soft_wrap=True)
    for found in json.loads(card.read_text())["accuracies"]:
        attack = f"{found['attack']} at {found['threat']}" if found["attack"] else "natural"
        OUT.print(f"  {attack}: {share(found)}")
    OUT.print(f"Weights: {result.best} and {result.last}", markup=False, soft_wrap=True)
    OUT.print(f"Model card: {card}", markup=False, soft_wrap=True)


def _accuracy(line: dict[str, object]) -> str:
    total = int(str(line["watched_total"]))
    text = f"natural {100 * int(str(line['watched_natural'])) / total:.1f}%"
    if line["watched_robust"] is not None:
        text += f", under PGD {100 * int(str(line['watched_robust'])) / total:.1f}%"
    return f"{text} of {total} watched images"


@contextmanager
def _bar(recipe: Recipe) -> Iterator["_Report"]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("{task.fields[found]}"),
    )
    with Progress(*columns, console=ERR, disable=not ERR.is_terminal) as bar:
        yield _Report(bar, recipe)


class _Report:
    """Draws the state of a training; where nobody watches, prints a line an epoch instead."""

    def __init__(self, bar: Progress, recipe: Recipe) -> None:
        self._bar, self._recipe = bar, recipe
        self._task = bar.add_task("starting", total=None, found="")
        self._watched: object = None

    def __call__(self, state: TrainingProgress) -> None:
        found = f"loss {state.loss:.3f}"
        if state.watched is not None:
            share = 100 / state.watched.total
            found += f", natural {share * state.watched.natural:.1f}%"
            if self._recipe.threat:
                found += f", PGD {share * state.watched.robust:.1f}%"
        self._bar.update(
            self._task,
            description=f"epoch {state.epoch}/{state.epochs}",
            completed=state.step,
            total=state.steps,
            found=found,
        )
        if not ERR.is_terminal and state.watched is not self._watched:
            self._watched = state.watched
            ERR.print(f"[{state.step}/{state.steps}] {found}", markup=False, soft_wrap=True)
