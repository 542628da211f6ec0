"""`dent challenge`: break a defense of a run with images, or an attack, from outside."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dent.cli import early, options
from dent.cli.console import OUT, print_json
from dent.support.printable import one_line

if TYPE_CHECKING:
    from dent.evaluation import Challenged


def challenge_command(
    run: Annotated[str, typer.Argument(help="Run folder, or its URL.", metavar="RUN")],
    by: Annotated[str, typer.Option(help="Who made the images, or the attack.", metavar="NAME")],
    images: Annotated[
        Path | None,
        typer.Option(help="Adversarial images: .safetensors or .npy.", metavar="FILE"),
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
        typer.Option(help="Which defense they were made for, or static.", metavar="NAME"),
    ] = None,
    url: Annotated[str | None, typer.Option(help="Where to read more.", metavar="LINK")] = None,
    note: Annotated[str | None, typer.Option(help="What else to record.", metavar="TEXT")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The model's weights file, if it needs one.")
    ] = None,
    root: Annotated[Path | None, options.data()] = None,
    device: Annotated[str | None, options.device()] = None,
    allow_code: Annotated[bool, options.allow_code()] = False,
    as_json: Annotated[bool, options.as_json(what="what came of it")] = False,
) -> None:
    """Submit adversarial images from outside to a defense of a run, and record the answers.

    They are checked against the threat model and submitted as whole batches. They count in the
    worst case and in the difference to static, under the name of their maker. Exit status 0:
    recorded, or already there. 2: refused, and nothing was recorded.
    """
    early.given(weights)
    from dent.cli import challenging

    source = challenging.source(images, attack, allow_code=allow_code)
    from dent.evaluation import remote

    with remote.written(run) as place:
        found = challenging.challenge(
            place.folder,
            source,
            by=by,
            defense=defense,
            url=url,
            note=note,
            restored=(weights, root, device, allow_code),
        )
    if as_json:
        print_json(challenging.plain(found, run))
        return
    _tell(found)


def _tell(found: "Challenged") -> None:
    from dent.report import wording

    record = found.challenge
    if not found.new:
        OUT.print(
            one_line(
                f"These images are there already, by {record.by} on {record.date[:10]}; nothing "
                "was changed."
            ),
            markup=False,
            soft_wrap=True,
        )
    for name, summary in found.summaries.items():
        defense = found.result.defenses[name]
        gain = wording.difference(defense.difference)
        against = f", against static {gain}" if gain else ""
        OUT.print(
            one_line(
                f"{name}: {wording.challenged(summary)} Worst case "
                f"{wording.count(defense.worst.served)}{against}."
            ),
            markup=False,
            soft_wrap=True,
        )
