"""Print what came of a challenge."""

from typing import Any

from dent.cli import console
from dent.evaluation import Challenged
from dent.report import wording
from dent.support.printable import one_line


def challenge_json(found: Challenged, run: str, *, dry_run: bool) -> dict[str, Any]:
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


def show_challenge(found: Challenged, *, dry_run: bool) -> None:
    """Print what came of a challenge for each attacked defense."""
    record = found.challenge
    if dry_run and found.new:
        console.say("Dry run: nothing was written. A challenge would record:")
    if not found.new:
        console.say(
            one_line(
                f"These images are there already, by {record.by} on {record.date[:10]}; nothing "
                "was changed."
            )
        )
    for name, summary in found.summaries.items():
        defense = found.result.defenses[name]
        gain = wording.bound(wording.difference(defense.difference), defense.decided)
        worst = wording.bound(wording.count(defense.worst.served), defense.decided)
        against = f", against static {gain}" if gain else ""
        console.say(
            one_line(
                f"{name}: {wording.challenged(summary, defense.decided)} Worst case "
                f"{worst}{against}."
            )
        )
