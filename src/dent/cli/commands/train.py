"""`dent train`: train a classifier to defend."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dent import names
from dent.cli import completion, console, options, preflight
from dent.support.extras import check

_WHAT = "What is trained"
_HOW = "The recipe"
_RUN = "The run"


def train_command(
    recipe: Annotated[
        str,
        typer.Option(
            help="nominal, adversarial, trades (the paper's), or fast (for CPUs), with --norm. Or "
            "a full name such as fast-linf.",
            autocompletion=completion.recipes,
            rich_help_panel=_WHAT,
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="resnet-DEPTH-WIDTH or module:factory.",
            autocompletion=completion.families,
            rich_help_panel=_WHAT,
        ),
    ] = "resnet-26-4",
    dataset: Annotated[
        str,
        typer.Option(
            help="Dataset, or module:factory, called with split='train'. Its train split is used.",
            autocompletion=completion.datasets,
            rich_help_panel=_WHAT,
        ),
    ] = "cifar10",
    n: Annotated[
        int | None,
        typer.Option(
            "--n",
            min=1,
            help="Use only N training images, or all if there are fewer: the first ones, or random "
            "ones of an image folder.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights to start from. Default: random.", rich_help_panel=_WHAT),
    ] = None,
    norm: Annotated[
        Literal["linf", "l2"] | None,
        options.norm(_HOW),
    ] = None,
    eps: Annotated[str | None, options.eps(_HOW)] = None,
    step_size: Annotated[
        str | None, typer.Option(help="Size of an inner attack step.", rich_help_panel=_HOW)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the inner PGD.", rich_help_panel=_HOW)
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="Noise of N-FGSM, in eps.", rich_help_panel=_HOW)
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(help="TRADES' beta: weight of the KL divergence.", rich_help_panel=_HOW),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs.", rich_help_panel=_HOW)] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per batch.", rich_help_panel=_HOW)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Largest learning rate.", rich_help_panel=_HOW)
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Weight decay.", rich_help_panel=_HOW)
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(help="Decay of the average of the weights.", rich_help_panel=_HOW),
    ] = None,
    seed: Annotated[int, options.seed(_RUN)] = 0,
    precision: Annotated[
        Literal["auto", "no", "bf16", "fp16"],
        typer.Option(help="auto is bf16 if the hardware supports it.", rich_help_panel=_RUN),
    ] = "auto",
    watched: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of test images that select the best weights: the last ones, or random "
            "ones of an image folder.",
            rich_help_panel=_RUN,
        ),
    ] = 512,
    pgd: Annotated[
        int,
        typer.Option(
            min=0, help="Images for the card's accuracy under PGD-20.", rich_help_panel=_RUN
        ),
    ] = 1000,
    autoattack: Annotated[
        int,
        typer.Option(
            min=0,
            help="Images for the card's accuracy under AutoAttack; 0 skips it.",
            rich_help_panel=_RUN,
        ),
    ] = 256,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu. Default: the GPU if there is one. CUDA_VISIBLE_DEVICES selects a GPU.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    root: Annotated[Path | None, options.data(_RUN)] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Output folder. The same command resumes it. Default: runs/train/MODEL-RECIPE.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    as_json: Annotated[bool, options.as_json(_RUN)] = False,
) -> None:
    """Train a classifier: nominal, adversarial (Madry et al.), TRADES, or fast on a CPU.

    If it is interrupted or killed, the same command resumes from the last checkpoint (one is saved
    every minute) and ends with the same weights. At the end it measures the weights and writes a
    model card.

    Exit status 0: done. 2: refused, or failed with one message. 130: interrupted by Ctrl-C. 143:
    interrupted by SIGTERM.
    """
    names.check(dataset=dataset, own=True)
    names.check_recipe(recipe, norm)
    preflight.check_data_folder(dataset, root)
    preflight.check_files_exist(weights)
    preflight.check_folder(out or Path("runs/train"))
    check("accelerate", "training", extra="train")
    from dent import training
    from dent.cli import resolve, runner
    from dent.cli.output.training import (
        announce_training,
        show_training,
        training_json,
        training_progress,
    )

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
    images, watch = resolve.both_splits(dataset, root)
    measured = training.Measured(pgd=pgd, autoattack=autoattack)
    training.check_measured(measured, watch, watched)
    if handle.is_main_process:
        resolve.say_how_many(n, images)
        announce_training(model, chosen, min(n or len(images), len(images)), images.name, folder)
    try:
        with training_progress(chosen) as report:
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
        with runner.progress() as measuring:
            card = training.write_card(
                result,
                watch,
                handle.device,
                measured,
                progress=measuring,
                on_clean=measuring.clean,
            )
    except KeyboardInterrupt:
        console.note(
            f"\nStopped. The checkpoint is in {folder}. The same command resumes the training."
        )
        raise
    if as_json:
        console.print_json(training_json(result, card))
    else:
        show_training(result, card)
