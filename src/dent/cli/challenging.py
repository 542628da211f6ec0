"""Restore what a run evaluated, and challenge it."""

from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from dent import evaluation, names, report
from dent.attacks import Attack
from dent.cli import resolve, restore
from dent.cli.console import ERR
from dent.errors import ConfigError
from dent.evaluation import Challenged

_Restored = tuple[Path | None, Path | None, str | None, bool]
"""Weights file, folder of datasets, device, and whether to run code that the run names."""


def source(images: Path | None, attack: str | None, *, allow_code: bool) -> Path | Attack:
    """Return where the images come from.

    Raises:
        ConfigError: It is not said, said twice, or code that was not allowed.
    """
    if (images is None) == (attack is None):
        raise ConfigError("a challenge takes either --images FILE or --attack ATTACK")
    if images is not None:
        return images
    text = attack or ""
    if names.is_own_attack(text) and not allow_code:
        raise ConfigError(
            f"--attack {text} is code, which to make its images is to run. If you trust it: "
            "--allow-code. Without it: have its author make the images, and pass --images."
        )
    (made,) = resolve.attacks([text], None, "frozen")
    return made


def challenge(
    folder: Path,
    source: Path | Attack,
    *,
    by: str,
    defense: str | None,
    url: str | None,
    note: str | None,
    restored: _Restored,
) -> Challenged:
    """Challenge a run, with a progress bar.

    Raises:
        ConfigError: The run names code, which was not allowed.
        DentError: As `dent.evaluation.challenge`.
    """
    weights, root, device, allow_code = restored
    loaded = report.load_run(folder)
    code_names = restore.named_code(loaded.run.spec)
    if code_names and not allow_code:
        raise ConfigError(
            f"A challenge of {folder} runs code that its records name: {', '.join(code_names)}. "
            "If you trust that code, add --allow-code."
        )
    subject = restore.subject(loaded, weights, root, device)
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=ERR, disable=not ERR.is_terminal) as bar:
        task = bar.add_task("batches", total=None)
        return evaluation.challenge(
            folder,
            subject,
            source,
            by=by,
            defense=defense,
            url=url,
            note=note,
            progress=lambda done, of: bar.update(task, completed=done, total=of),
        )


def plain(found: Challenged, run: str) -> dict[str, Any]:
    """Return what came of a challenge, as JSON values."""
    return {
        "run": run,
        "new": found.new,
        "digest": found.challenge.digest,
        "by": found.challenge.by,
        "defenses": {
            name: {
                "challenge": summary.to_json(),
                "worst": found.result.defenses[name].worst.to_json(),
                "difference": None
                if (gained := found.result.defenses[name].difference) is None
                else gained.to_json(),
            }
            for name, summary in found.summaries.items()
        },
    }
