"""`dent evaluate`: attack defenses of a model, and score what they serve."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dent.cli import resolve, running
from dent.cli.console import print_json
from dent.evaluation import Settings
from dent.threat import ThreatModel

_INPUT = "What is evaluated"
_THREAT = "The attack"
_RUN = "The run"


def evaluate_command(
    model: Annotated[
        str,
        typer.Option(
            help="A name of `dent models`, torchvision/NAME, timm/NAME, resnet-DEPTH-WIDTH with "
            "--weights, or module:factory.",
            rich_help_panel=_INPUT,
        ),
    ] = "resnet18-nominal",
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights file: safetensors, or torch weights-only.", rich_help_panel=_INPUT
        ),
    ] = None,
    dataset: Annotated[
        str,
        typer.Option(
            help="cifar10, cifar10-sample, cifar100, imagenet or imagenet-288, imagefolder or "
            "imagefolder-288 (with --data FOLDER), cifar10-c/CORRUPTION/SEVERITY, ...",
            rich_help_panel=_INPUT,
        ),
    ] = "cifar10-sample",
    n: Annotated[
        int | None,
        typer.Option("--n", min=1, help="First N samples; all by default.", rich_help_panel=_INPUT),
    ] = None,
    defense: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable. static, dent, dent+, dent-nominal, another of docs/defenses.md, a "
            "JSON configuration, or module:factory. By default dent and dent+.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    static: Annotated[
        bool,
        typer.Option(
            "--static/--no-static",
            help="Attack the static model, too, to compare with.",
            rich_help_panel=_INPUT,
        ),
    ] = True,
    norm: Annotated[
        Literal["linf", "l2", "l1"], typer.Option(help="Norm.", rich_help_panel=_THREAT)
    ] = "linf",
    eps: Annotated[
        str, typer.Option(help="Radius, as 8/255 or 0.5.", rich_help_panel=_THREAT)
    ] = "8/255",
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable. apgd-ce, apgd-t, fab-t, square, standard (AutoAttack), plus, pgd, "
            "... By default apgd-ce.",
            rich_help_panel=_THREAT,
        ),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(min=1, help="Of each attack; its own by default.", rich_help_panel=_THREAT),
    ] = None,
    protocol: Annotated[
        Literal["frozen", "published"],
        typer.Option(
            help="frozen keeps every batch whole; published runs AutoAttack as it ships.",
            rich_help_panel=_THREAT,
        ),
    ] = "frozen",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Members of a batch.", rich_help_panel=_RUN)
    ] = 128,
    order: Annotated[
        Literal["dataset", "shuffled", "by-class"],
        typer.Option(help="How samples are laid into batches.", rich_help_panel=_RUN),
    ] = "dataset",
    mix: Annotated[
        float | None,
        typer.Option(help="Share of each batch that is attacked.", rich_help_panel=_RUN),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="What every seed derives from.", rich_help_panel=_RUN)
    ] = 0,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1. By default the GPU if any.", rich_help_panel=_RUN),
    ] = None,
    diagnostics: Annotated[
        Literal["cheap", "full"],
        typer.Option(
            help="full also attacks the first batch with a huge eps, and with more iterations.",
            rich_help_panel=_RUN,
        ),
    ] = "cheap",
    over: Annotated[
        str | None,
        typer.Option(
            "--sweep",
            help="One run for each value: batch-size=1,4,16 or eps=2/255,8/255, or order, mix, n.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "--data-root",
            help="Folder of datasets; with imagefolder, the folder itself.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Run folder; the same command resumes it.", rich_help_panel=_RUN)
    ] = Path("runs/evaluate"),
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the result as JSON.", rich_help_panel=_RUN),
    ] = False,
) -> None:
    """Attack defenses of a model, and score what they serve.

    The static model is attacked along with the same budget, and what breaks it is replayed on every
    defense. Records are written as the run goes: interrupt it, and the same command goes on.
    """
    threat = ThreatModel(norm, eps)
    chosen = resolve.attacks(attack or ["apgd-ce"], iterations, protocol)
    where = resolve.device(device)
    images = resolve.dataset(dataset, root)
    wrapped = resolve.model(model, weights, images, where)
    subject = resolve.subject(
        model,
        images,
        wrapped,
        resolve.defenses(defense or ["dent", "dent+"], wrapped),
        chosen,
        threat,
    )
    settings = Settings(
        n=n,
        batch_size=batch_size,
        order=order,
        mix=mix,
        seed=seed,
        static=static,
        transfer=static,
        diagnostics=diagnostics,
    )
    if over is not None:
        name, values = resolve.swept(over)
        results = running.run_sweep(subject, settings, name, values, out)
    else:
        running.announce(subject, settings)
        results = {"": running.run(subject, settings, out)}
    if as_json:
        plain = {value: result.model_dump(mode="json") for value, result in results.items()}
        print_json(plain if over is not None else plain[""])
        return
    for value, result in results.items():
        running.show(result, out / running.folder_name(name, value) if value else out)
