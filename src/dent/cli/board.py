"""`dent board`: the tracks of the board, and rows on them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from dent import names
from dent.cli import completing, early, options
from dent.cli.console import OUT, print_json

board_app = typer.Typer(
    name="board",
    help="Evaluate a defense on a track of the board, which is the same for everybody.",
    no_args_is_help=True,
)

_Track = Annotated[
    str,
    typer.Argument(
        help="A name from `dent board tracks`.",
        metavar="TRACK",
        autocompletion=completing.board_tracks,
    ),
]


@board_app.command("tracks")
def tracks_command(
    as_json: Annotated[bool, options.as_json(what="the tracks")] = False,
) -> None:
    """List the tracks: base model, threat model, samples and suite."""
    from dent.board.tracks import tracks

    if as_json:
        print_json(
            [
                track.to_json() | {"identity": track.identity, "fixed_ids": list(track.fixed_ids)}
                for track in tracks().values()
            ]
        )
        return
    for track in tracks().values():
        OUT.print(f"[bold]{escape(track.name)}[/]", soft_wrap=True)
        fixed = "" if track.weights else "; weights to be fixed"
        OUT.print(
            f"    {track.title} ({track.model}{fixed})\n    {track.half} fixed samples and "
            f"{track.half} drawn by a nonce, in batches of {track.batch_size}; dynamic suite "
            f"{track.suite}, {track.budget}",
            markup=False,
            soft_wrap=True,
        )


@board_app.command("run")
def run_command(
    track: _Track,
    defense: Annotated[
        str,
        typer.Option(
            help="A name from docs/defenses.md, a JSON configuration, or module:factory.",
            autocompletion=completing.defenses,
        ),
    ],
    nonce: Annotated[
        str | None,
        typer.Option(
            help="Draws the other half of the samples. Choose it after the defense was submitted. "
            "Default: only the fixed half."
        ),
    ] = None,
    variant: Annotated[
        str,
        typer.Option(
            help="headline, by-class, mix-0.25, or views (for tte, to compare with the row)."
        ),
    ] = "headline",
    to_the_end: Annotated[
        bool,
        typer.Option(
            "--to-the-end",
            help="Run every attack of the suite, even after a gain has become impossible.",
        ),
    ] = False,
    root: Annotated[Path | None, options.data()] = None,
    device: Annotated[str | None, options.device()] = None,
    out: Annotated[
        str,
        typer.Option(
            help="Folder of the row, or its URL. Each variant is a run in it. The same command "
            "resumes it."
        ),
    ] = "runs/board",
    as_json: Annotated[bool, options.as_json()] = False,
) -> None:
    """Evaluate a defense with the samples, batches and suite of a track.

    Exit statuses are those of `dent evaluate`.
    """
    from dent.board.tracks import track as find

    chosen = find(track)
    settings = chosen.settings(variant, nonce, "end" if to_the_end else "decided")
    names.check(model=chosen.model, dataset=chosen.dataset, defenses=(defense,), own=True)
    early.model(chosen.model)
    early.given(None, (defense,))
    early.folder(out)
    from dent.board import row
    from dent.board.running import attacks_of, check_defenses, check_subject
    from dent.cli import resolve, running, showing
    from dent.evaluation import describe, remote
    from dent.threat import ThreatModel

    images = resolve.dataset(chosen.dataset, root)
    model = resolve.model(chosen.model, None, images, resolve.device(device))
    subject = resolve.subject(
        chosen.model,
        images,
        model,
        resolve.defenses([defense], model),
        list(attacks_of(chosen, variant)),
        ThreatModel(chosen.norm, chosen.eps),
    )
    check_subject(chosen, subject)
    check_defenses(chosen, variant, describe(subject, settings))
    with remote.written(out) as place:
        row.begin(place.folder, chosen, nonce)
        folder = place.folder / variant
        running.announce(subject, settings, folder)
        result = running.run(subject, settings, folder, running.How(place=place))
    if as_json:
        print_json(result.to_json())
        return
    showing.show(result, f"{out}/{variant}")
