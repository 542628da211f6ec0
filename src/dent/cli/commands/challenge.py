"""`dent challenge`: submit images or an attack from outside to the defenses of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dent.cli import console, options, preflight


def challenge_command(
    run: Annotated[str, typer.Argument(help="Run folder, or its URL.", metavar="RUN")],
    by: Annotated[str, typer.Option(help="Who made the images, or the attack.", metavar="NAME")],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Adversarial images, floats in [0, 1]: .npy (N, C, H, W), in ascending order of "
            "the samples' ids; or .safetensors with the key adversarial. For another order, or for "
            "only some batches, add the key ids (N,), int64.",
            metavar="FILE",
        ),
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option(
            help="Run this attack instead: package.module:factory (with --allow-code), or a name "
            "with settings.",
            metavar="ATTACK",
        ),
    ] = None,
    defense: Annotated[
        str | None,
        typer.Option(
            help="Name of the attacked defense, or static. Default: the only defense of the run.",
            metavar="NAME",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Where the images are, or a page about the attack. The board links it if the "
            "challenge lowers a row.",
            metavar="LINK",
        ),
    ] = None,
    note: Annotated[str | None, typer.Option(help="A remark to record.", metavar="TEXT")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The model's weights file, if it needs one.")
    ] = None,
    root: Annotated[Path | None, options.data()] = None,
    device: Annotated[str | None, options.device()] = None,
    allow_code: Annotated[bool, options.allow_code()] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check and submit the images, but write nothing."),
    ] = False,
    as_json: Annotated[bool, options.as_json()] = False,
) -> None:
    """Submit adversarial images from outside to a defense of a run, and record the predictions.

    The images are checked against the threat model and submitted as whole batches. They count in
    the worst case and in the difference to static, under the name of their maker. A challenge is
    permanent and cannot be resumed.

    Exit status 0: recorded, or already there. 2: refused, and nothing was recorded.
    """
    preflight.check_files_exist(weights)
    from dent.cli import resolve, runner
    from dent.cli.output.challenge import challenge_json, show_challenge

    source = resolve.challenge_source(images, attack, allow_code=allow_code)

    with _opened(run, dry_run=dry_run) as folder:
        found = runner.challenge(
            folder,
            source,
            by=by,
            defense=defense,
            url=url,
            note=note,
            dry_run=dry_run,
            restoration=runner.Restoration(weights, root, device, allow_code),
        )
    if as_json:
        console.print_json(challenge_json(found, run, dry_run=dry_run))
        return
    show_challenge(found, dry_run=dry_run)


@contextmanager
def _opened(run: str, *, dry_run: bool) -> Iterator[Path]:
    from dent.evaluation import remote

    if dry_run:
        with remote.fetched(run) as folder:
            yield folder
        return
    with remote.written(run) as place:
        yield place.folder
