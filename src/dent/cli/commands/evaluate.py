"""`dent evaluate`: attack a model's defenses, and score them."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from dent import names
from dent.cli import completion, console, options, preflight
from dent.errors import ConfigError

_INPUT = "What is evaluated"
_THREAT = "The attack"
_RUN = "The run"
_MANY = "On many processes and machines"


SUITE_SAMPLES: Final = 1024
"""Default number of samples for a suite. Fewer samples can show only large gains."""


def evaluate_command(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(
            help="A name from `dent models`, torchvision/NAME, timm/NAME, hf/ORG/NAME, "
            "resnet-DEPTH-WIDTH with --weights, or module:factory.",
            autocompletion=completion.models,
            rich_help_panel=_INPUT,
        ),
    ] = "resnet-14-2-linf",
    weights: Annotated[
        Path | None,
        options.weights(_INPUT),
    ] = None,
    dataset: Annotated[
        str,
        typer.Option(
            help="cifar10, cifar10-sample, cifar100, imagenet, imagenet-288, cifar10-c/fog/3, "
            "imagefolder or imagefolder-288 (with --data FOLDER), or module:factory.",
            autocompletion=completion.datasets,
            rich_help_panel=_INPUT,
        ),
    ] = "cifar10-sample",
    n: Annotated[
        int | None,
        typer.Option(
            "--n",
            min=1,
            help="First N samples, or all if there are fewer. Default: 1024 with --suite, "
            "otherwise all.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option(
            help="Samples by their ids in the full split, as 0-511,600, instead of --n.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    defense: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable. static, dent, dent+, dent-nominal, another of docs/defenses.md, a "
            "JSON configuration, or module:factory. Default: dent+.",
            autocompletion=completion.defenses,
            rich_help_panel=_INPUT,
        ),
    ] = None,
    static: Annotated[
        bool,
        typer.Option(
            "--static/--no-static",
            help="Also attack the static model, for comparison.",
            rich_help_panel=_INPUT,
        ),
    ] = True,
    norm: Annotated[
        Literal["linf", "l2", "l1"],
        options.norm(_THREAT),
    ] = "linf",
    eps: Annotated[str | None, options.eps(_THREAT)] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable. apgd-ce, apgd-t, fab-t, square, standard (AutoAttack), plus, pgd, "
            "pgd-imagenet, ...; with settings: pgd:iterations=30; or "
            "module:factory. Default: apgd-ce.",
            autocompletion=completion.attacks,
            rich_help_panel=_THREAT,
        ),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(
            min=1, help="Iterations of each attack. Default: its own.", rich_help_panel=_THREAT
        ),
    ] = None,
    suite: Annotated[
        Literal["dynamic"] | None,
        typer.Option(
            help="Instead of --attack: the published attacks on dynamic defenses that we know of "
            "(docs/evaluation/attacks.md), and a verdict.",
            rich_help_panel=_THREAT,
        ),
    ] = None,
    budget: Annotated[
        Literal["small", "standard", "full"] | None,
        typer.Option(
            help="How long the attacks of the suite run. Default: small.",
            rich_help_panel=_THREAT,
        ),
    ] = None,
    to_the_end: Annotated[bool, options.to_the_end(_THREAT)] = False,
    protocol: Annotated[
        Literal["frozen", "published"],
        typer.Option(
            help="frozen keeps every batch whole; published runs AutoAttack's own code, which "
            "drops broken images and regroups the others.",
            rich_help_panel=_THREAT,
        ),
    ] = "frozen",
    randomness: Annotated[
        Literal["private", "public"],
        typer.Option(
            help="public: attacks know the seed of the submission, and query randomized defenses "
            "under it.",
            rich_help_panel=_THREAT,
        ),
    ] = "private",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images per batch.", rich_help_panel=_RUN)
    ] = 128,
    order: Annotated[
        Literal["dataset", "shuffled", "by-class"],
        typer.Option(help="How samples form batches.", rich_help_panel=_RUN),
    ] = "dataset",
    mix: Annotated[
        str | None,
        typer.Option(
            help="Attacked share of each batch: 0.0625 is one of 16. Several (0.1,0.25,0.5) give "
            "one run each.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    seed: Annotated[int, options.seed(_RUN)] = 0,
    device: Annotated[
        str | None,
        options.device(_RUN),
    ] = None,
    diagnostics: Annotated[
        Literal["cheap", "full"],
        typer.Option(
            help="full also attacks the first batch with a huge eps, and at most 16 of its members "
            "with more iterations.",
            rich_help_panel=_RUN,
        ),
    ] = "cheap",
    tensors: Annotated[
        Literal["keep", "drop"],
        typer.Option(
            help="keep stores the adversarial images in the run folder. Without them nobody can "
            "verify the run.",
            rich_help_panel=_RUN,
        ),
    ] = "keep",
    over: Annotated[
        str | None,
        typer.Option(
            "--sweep",
            help="One run per value: batch-size=1,4,16 or eps=2/255,8/255, or order, mix, n, seed.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        options.data(_INPUT),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="[ADDRESS]",
            help="Run on the Ray cluster at HOST:PORT or in RAY_ADDRESS. Without either: on all "
            "cores of this machine.",
            rich_help_panel=_MANY,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that work at once. Default: as many as fit.",
            rich_help_panel=_MANY,
        ),
    ] = None,
    cpus_per_worker: Annotated[
        int | None,
        typer.Option(
            min=1, help="Cores and threads per worker. Default: 1.", rich_help_panel=_MANY
        ),
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="GPUs per worker; 0.5 lets two share one. Default: 0.",
            rich_help_panel=_MANY,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/K",
            help="Run only part I of K, for `dent merge`.",
            rich_help_panel=_MANY,
        ),
    ] = None,
    static_from: Annotated[Path | None, options.static_from(_RUN)] = None,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="Run folder or its URL (s3://...). The same command resumes it.",
            rich_help_panel=_RUN,
        ),
    ] = "runs/evaluate",
    as_json: Annotated[
        bool,
        options.as_json(_RUN),
    ] = False,
) -> None:
    """Attack a model's defenses, and score them.

    The static model is attacked with the same budget, and its adversarial images are submitted to
    every defense. Records are written during the run. If it is interrupted, the same command
    resumes it.

    Exit status 0: done. 2: refused, or failed with one message. 130: interrupted by Ctrl-C. 143:
    interrupted by SIGTERM.
    """
    names.check(
        model=model, dataset=dataset, defenses=defense or (), attacks=attack or (), own=True
    )
    preflight.check_model(model)
    preflight.check_files_exist(weights, defense or ())
    preflight.check_cluster(ray)
    preflight.check_folder(out)
    from dent.cli import resolve, runner
    from dent.cli.output.result import show_result
    from dent.evaluation import Settings, remote, restoration
    from dent.evaluation import suite as attacks_of
    from dent.evaluation.records.shard import Shard
    from dent.evaluation.sweeps import folder_name
    from dent.support import devices, ranges

    asked = n
    if n is not None and ids is not None:
        raise ConfigError("--n and --ids both choose the samples: give one")
    swept = resolve.swept(over, mix)
    if over is not None and swept is not None:
        resolve.check_swept(over, swept[0], options.typed(context))
    threat = resolve.threat(norm, eps, swept)
    if swept is not None and static_from is not None:
        raise ConfigError("--static-from is for a single run: leave out --sweep")
    if suite is not None or budget is not None or to_the_end:
        resolve.check_suite(
            suite, attack=attack, iterations=iterations, protocol=protocol, static=static
        )
        mixed = mix is not None or (swept is not None and swept[0] == "mix")
        n = n or (SUITE_SAMPLES if ids is None else None)
        attacks = list(attacks_of(suite or "dynamic", budget or "small", mixed=mixed))
    else:
        attacks = resolve.attacks(attack or ["apgd-ce"], iterations, protocol)
    placement = runner.RunPlacement(
        resolve.cluster(ray, workers, cpus_per_worker, gpus_per_worker, device),
        None if shard is None else Shard.parse(shard),
        static_from=static_from,
    )
    settings = Settings(
        n=n,
        ids=None if ids is None else ranges.read(ids),
        batch_size=batch_size,
        order=order,
        mix=None if swept and swept[0] == "mix" else resolve.share(mix),
        seed=seed,
        static=static,
        transfer=static,
        diagnostics=diagnostics,
        tensors=tensors,
        until="end" if to_the_end else "decided",
        randomness=randomness,
    )
    # On a cluster, workers compute on their own devices, and this process keeps the model on CPU.
    compute_device = devices.usable_device(device if placement.cluster is None else "cpu")
    images = resolve.dataset(dataset, root)
    static_model = restoration.checked_model(model, weights, images, compute_device)
    subject = resolve.subject(
        model,
        images,
        static_model,
        resolve.defenses(defense or ["dent+"], static_model),
        attacks,
        threat,
    )
    resolve.say_how_many(asked, images, swept)
    with remote.written(out) as place:
        placement = replace(placement, place=place)
        if swept is not None:
            runner.announce_sweep(subject, settings, *swept, place.folder, placement)
            results = runner.run_sweep(subject, settings, *swept, place.folder, placement)
            folders = {value: f"{out}/{folder_name(swept[0], value)}" for value in results}
        else:
            runner.announce(subject, settings, place.folder, placement)
            results = {"": runner.run(subject, settings, place.folder, placement)}
            folders = {"": out}
    if as_json:
        plain = {value: result.to_json() for value, result in results.items()}
        console.print_json(plain if swept is not None else plain[""])
        return
    for value, result in results.items():
        show_result(result, folders[value])
