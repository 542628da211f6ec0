"""Restore what a run evaluated, and challenge it."""

from pathlib import Path
from typing import Any

from dent import evaluation, names, report
from dent.attacks import Attack
from dent.cli import resolve, running
from dent.cli.console import ERR
from dent.errors import ConfigError
from dent.evaluation import Challenged, Progress, Subject
from dent.support.durations import between

_Restored = tuple[Path | None, Path | None, str | None, bool]
"""The weights file, the folder of datasets, the device, and whether code may run."""


def source(images: Path | None, attack: str | None, *, allow_code: bool) -> Path | Attack:
    """Return the source of the images: a file, or an attack.

    Raises:
        ConfigError: Neither or both are given, or the attack is code that is not allowed.
    """
    if (images is None) == (attack is None):
        raise ConfigError("a challenge takes either --images FILE or --attack ATTACK")
    if images is not None:
        return images
    text = attack or ""
    if names.is_own_attack(text) and not allow_code:
        raise ConfigError(
            f"--attack {text} is code that would be run to make the images. If you trust it, add "
            "--allow-code. If not, ask its author for the images and pass --images."
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
    dry_run: bool,
    restored: _Restored,
) -> Challenged:
    """Challenge a run: print the cost of an attack, and show the progress.

    Raises:
        ConfigError: The run names code that is not allowed.
        DentError: As in `dent.evaluation.challenge`.
    """
    weights, root, device, allow_code = restored
    loaded = report.load_run(folder)
    subject = evaluation.restore(
        loaded, weights=weights, data_root=root, device=device, allow_code=allow_code
    )
    if isinstance(source, Attack):
        _announce(folder, subject, source, defense)
    batches = len(loaded.plan.batches)
    try:
        with running.progress() as shown:
            return evaluation.challenge(
                folder,
                subject,
                source,
                by=by,
                defense=defense,
                url=url,
                note=note,
                progress=lambda state: shown(state, _where(state, batches)),
                dry_run=dry_run,
            )
    except KeyboardInterrupt:
        ERR.print("\nStopped. Nothing was recorded.", soft_wrap=True, markup=False)
        raise


def _announce(folder: Path, subject: Subject, attack: Attack, defense: str | None) -> None:
    """Print the largest cost of an attack before it starts."""
    text = "A challenge cannot be resumed: if it stops, nothing is recorded."
    try:
        cost = evaluation.estimate_challenge(folder, subject, attack, defense=defense)
    except ConfigError:  # there is no estimate, or the challenge will be refused
        pass
    else:
        time = between(cost.least, cost.seconds)
        text = f"This attack takes about {time} if it does not stop early. {text}"
    ERR.print(text, soft_wrap=True, markup=False)


def _where(state: Progress, batches: int) -> str:
    batch = None if state.unit is None else state.unit.batch
    return "" if batch is None else f"batch {batch + 1} of {batches}"


def plain(found: Challenged, run: str, *, dry_run: bool) -> dict[str, Any]:
    """Return the outcome of a challenge as plain JSON values."""
    return {
        "run": run,
        "new": found.new,
        "dry_run": dry_run,
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
