"""`dent board`: list the tracks of the board, and make, submit and check rows."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dent import names
from dent.cli import completion, console, options, preflight
from dent.cli.typer_classes import renamed
from dent.errors import ConfigError
from dent.support.plural import counted

if TYPE_CHECKING:
    from dent.board.verification import Recording

board_app = typer.Typer(
    name="board",
    help="Evaluate a defense on a track of the board, and submit, check, show or export rows.",
    no_args_is_help=True,
)

_Track = Annotated[
    str,
    typer.Argument(
        help="A name from `dent board tracks`.",
        metavar="TRACK",
        autocompletion=completion.board_tracks,
    ),
]

_Row = Annotated[Path, typer.Argument(help="Folder of a row.", metavar="ROW")]


@board_app.command("tracks")
def tracks_command(
    as_json: Annotated[bool, options.as_json(what="the tracks")] = False,
) -> None:
    """List the tracks: base model, threat model, samples and suite."""
    from dent.board.tracks import NOT_OF_THE_BOARD, tracks

    if as_json:
        console.print_json(
            [
                track.to_json() | {"identity": track.identity, "fixed_ids": list(track.fixed_ids)}
                for track in tracks().values()
            ]
        )
        return
    for track in tracks().values():
        console.say(track.name, style="bold")
        fixed = "" if track.weights else "; the digest of the weights is not recorded yet"
        console.say(
            f"    {track.label} ({track.model}{fixed})\n    {track.half} fixed samples and "
            f"{track.half} drawn by a nonce, in batches of {track.batch_size}; dynamic suite "
            f"{track.suite}, {track.budget}"
        )
        if track.practice:
            console.say(f"    {NOT_OF_THE_BOARD.capitalize()}.")


@board_app.command("run")
def run_command(
    track: _Track,
    defense: Annotated[
        str,
        typer.Option(
            help="A name from docs/defenses.md, a JSON configuration, or module:factory.",
            autocompletion=completion.defenses,
        ),
    ],
    nonce: Annotated[
        str | None,
        typer.Option(
            help="Draws the other half of the samples. For maintainers: they draw it after the "
            "defense was submitted, and a row with a nonce of your own is void. Default: only the "
            "fixed half, which is your claim."
        ),
    ] = None,
    variant: Annotated[
        str,
        typer.Option(
            help="headline, by-class, mix-0.25, public (randomness that the attacker knows), or "
            "views (for tte, to compare with the row)."
        ),
    ] = "headline",
    to_the_end: Annotated[bool, options.to_the_end()] = False,
    static_from: Annotated[Path | None, options.static_from()] = None,
    root: Annotated[Path | None, options.data()] = None,
    device: Annotated[str | None, options.device()] = None,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="Folder of the row, or its URL. Each variant is a run in it. The same command "
            "resumes it.",
        ),
    ] = "runs/board",
    as_json: Annotated[bool, options.as_json()] = False,
) -> None:
    """Evaluate a defense with the samples, batches and suite of a track.

    Exit statuses are those of `dent evaluate`.
    """
    from dent.board.tracks import NOT_OF_THE_BOARD
    from dent.board.tracks import track as find

    chosen = find(track)
    settings = chosen.settings(variant, nonce, "end" if to_the_end else "decided")
    names.check(model=chosen.model, dataset=chosen.dataset, defenses=(defense,), own=True)
    preflight.check_model(chosen.model)
    preflight.check_files_exist(None, (defense,))
    preflight.check_folder(out)
    from dent.board import row_folder
    from dent.board.track_rules import attacks_of, check_defenses, check_subject
    from dent.cli import resolve, runner
    from dent.cli.output.result import show_result
    from dent.evaluation import describe, remote
    from dent.evaluation.restoration import checked_model
    from dent.support.devices import usable_device
    from dent.threat import ThreatModel

    images = resolve.dataset(chosen.dataset, root)
    model = checked_model(chosen.model, None, images, usable_device(device))
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
        row_folder.begin(place.folder, chosen, nonce)
        folder = place.folder / variant
        placement = runner.RunPlacement(place=place, static_from=static_from)
        if chosen.practice:
            console.note(f"{chosen.name} is {NOT_OF_THE_BOARD}.")
        runner.announce(subject, settings, folder, placement)
        result = runner.run(subject, settings, folder, placement)
    if as_json:
        console.print_json(result.to_json())
        return
    show_result(result, f"{out}/{variant}")


@board_app.command("page")
def page_command(
    folder: Annotated[Path, typer.Argument(help="Folder with rows.", metavar="FOLDER")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("board.html"),
    reports: Annotated[
        bool,
        typer.Option("--reports", help="Also write the report of each row's run, and link to it."),
    ] = False,
    root: Annotated[Path | None, options.data()] = None,
    as_json: Annotated[bool, options.as_json(what="the rows")] = False,
) -> None:
    """Write the page of the board, one self-contained file, from the rows in a folder."""
    preflight.check_file(out)
    from dent.board.listing import list_rows
    from dent.board.page import write_page, write_reports

    rows = list_rows(folder)
    write_page(rows, out, write_reports(rows, root) if reports else ())
    if as_json:
        console.print_json([row.to_json() for row in rows])
        return
    console.say(f"Written to {out}, {counted(len(rows), 'row')}")


@board_app.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(help="Folder with rows.", metavar="FOLDER")],
    to: Annotated[str, typer.Option(help="huggingface or every-eval-ever.", metavar="PLACE")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the files; existing ones are replaced.")
    ] = Path("exported"),
    url: Annotated[
        str | None,
        typer.Option("--board-url", help="Address of the board, which is named as the source."),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="For huggingface: the dataset on the hub that is the benchmark, ORG/NAME. Adds "
            ".eval_results files."
        ),
    ] = None,
    as_json: Annotated[bool, options.as_json(what="the files and the rows left out")] = False,
) -> None:
    """Write the rows in the format of another place that lists evaluation results.

    Leave out rows that are void, incomplete, or not evaluated as their track says, and name them.
    """
    preflight.check_folder(out)
    from dent.board.export import export

    exported = export(folder, to, out, url, benchmark)
    if as_json:
        console.print_json(exported.to_json())
        return
    for name, reason in exported.omitted:
        console.say(f"Left out {name}: {reason}")
    console.say(f"{counted(len(exported.files), 'file')} written to {out}")


@board_app.command("submit")
def submit_command(
    row: _Row,
    fields: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="JSON file with fields of the submission, such as that of a claim; options add to "
            "it.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the row.")] = None,
    defense: Annotated[
        str | None,
        typer.Option(
            help="The defense of `dent board run`. Only needed for a JSON file: its path, relative "
            "to the root of its repository, where you run this command."
        ),
    ] = None,
    repository: Annotated[str | None, typer.Option(help="URL of the defense's code.")] = None,
    commit: Annotated[
        str | None,
        typer.Option(help="Full hash of the commit, 40 digits (`git rev-parse HEAD`)."),
    ] = None,
    paper: Annotated[str | None, typer.Option(help="URL of the paper.")] = None,
    contact: Annotated[str | None, typer.Option(help="Who answers questions.")] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="License of the code, by its SPDX identifier.")
    ] = None,
    evaluated_by: Annotated[str | None, typer.Option(help="Who ran the evaluation.")] = None,
    records_only: Annotated[bool, options.records_only()] = False,
    root: Annotated[Path | None, options.data()] = None,
    device: Annotated[str | None, options.device()] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Archive of the records, which ends in .tar.gz."),
    ] = None,
    as_json: Annotated[bool, options.as_json(what="the submission")] = False,
) -> None:
    """Prepare a row for submission: verify it, pack it, and write its submission.json.

    Then print how to open the pull request.

    Exit status 0: done. 1: something is wrong with the row. 2: a field is missing or wrong.
    """
    preflight.check_writable(files=(out,))
    from dent.board.verification import RowCheck, VerifyOptions, submit
    from dent.cli import runner
    from dent.cli.output.submission import show_next_steps
    from dent.cli.output.verification import FAILED, show_checks

    given = {
        "name": name,
        "factory": defense,
        "repository": repository,
        "commit": commit,
        "paper": paper,
        "contact": contact,
        "license": license_,
        "evaluated_by": evaluated_by,
    }
    verify_options = VerifyOptions(
        root, device, records_only=records_only, progress=runner.verification_progress
    )
    done = submit(row, fields, given, out, verify_options)
    if isinstance(done, RowCheck):
        if as_json:
            console.print_json(done.to_json())
        else:
            show_checks(str(row), done.says, done.checks)
        raise typer.Exit(FAILED)
    for note in done.notes:
        console.note(note)
    if as_json:
        console.print_json(done.submission.to_json())
        return
    show_next_steps(done)


@board_app.command(
    "check", cls=renamed({"--nonce": "--reattack-nonce", "--images": "--images-archive"})
)
def check_command(
    row: _Row,
    images_archive: Annotated[
        Path | None, typer.Option(help="Archive of the row's images, as `dent pack` wrote it.")
    ] = None,
    lock_file: Annotated[
        Path | None,
        typer.Option(help="The lock file, to compare with the SHA-256 in the submission."),
    ] = None,
    weights_files: Annotated[
        list[Path] | None,
        typer.Option(
            "--weights-file",
            help="A file of the defense's weights, to compare with the SHA-256 in the submission. "
            "Repeat it for all of them.",
        ),
    ] = None,
    reattack: Annotated[str | None, options.reattack()] = None,
    reattack_nonce: Annotated[str | None, options.reattack_nonce()] = None,
    records_only: Annotated[bool, options.records_only()] = False,
    allow_code: Annotated[bool, options.allow_code()] = False,
    by: Annotated[
        str | None,
        typer.Option("--record", help="Who checked: add passed checks to the row's trust.json."),
    ] = None,
    nonce_source: Annotated[
        str | None,
        typer.Option(
            help="With --record: where the nonce of the row comes from, such as the hash of a "
            "named block of a public chain. NAME is recorded as the one who drew it.",
            metavar="TEXT",
        ),
    ] = None,
    root: Annotated[Path | None, options.data()] = None,
    device: Annotated[str | None, options.device()] = None,
    as_json: Annotated[bool, options.as_json()] = False,
) -> None:
    """Check a row as a maintainer does: fields, digests, track, bounds, every batch and attacks.

    ROW is the folder of a row, or an archive of one from `dent pack`.

    Exit statuses are those of `dent verify`. 0: verified. 1: something is wrong. 3: nothing is
    wrong, but not everything was checked.
    """
    from dent.board.verification import DownloadedFiles, VerifyOptions, check
    from dent.cli import resolve, runner
    from dent.cli.output.verification import exit_unless_verified, show_checks

    again = resolve.reattack(reattack, reattack_nonce, records_only=records_only)
    verify_options = VerifyOptions(
        root, device, records_only, allow_code, runner.verification_progress
    )
    recorded = _recording(by, nonce_source)
    files = DownloadedFiles(images_archive, lock_file, tuple(weights_files or ()))
    checked = check(row, files, verify_options, again, recorded)
    if as_json:
        console.print_json(checked.to_json())
    else:
        show_checks(str(row), checked.says, checked.checks)
    exit_unless_verified(checked.status)


def _recording(by: str | None, nonce_source: str | None) -> "Recording | None":
    """Return what to record; None without `--record`.

    Raises:
        ConfigError: There is a source, but nothing to record it with.
    """
    if by is None:
        if nonce_source is not None:
            raise ConfigError("--nonce-source is recorded with a check: add --record NAME.")
        return None
    if nonce_source is not None and not nonce_source.strip():
        raise ConfigError("--nonce-source expected a text that says where the nonce comes from.")
    from dent.board.verification import Recording

    return Recording(by, nonce_source)
