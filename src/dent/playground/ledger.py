"""What was run on this page before, so that no run is told what an earlier one contradicts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dent.playground.images import Picked
from dent.playground.outcome import WHO, CourseName, PlaygroundOutcome, Who, asked_by
from dent.playground.setup import Setup
from dent.playground.watch import Look
from dent.playground.words import ATTACKS

MOST: Final = 200
"""Runs that a page remembers."""


@dataclass(frozen=True)
class Entry:
    """One run, or as much of it as there was before it was stopped.

    Attributes:
        image: Key of the image.
        name: The image, in words.
        setup: What was run.
        broken: By whose answers the image is wrong, and under what, in words.
        least: How many members of the batch were left right, at least; empty of a stopped run.
        finished: Whether it was not stopped.
    """

    image: str
    name: str
    setup: Setup
    broken: Mapping[Who, tuple[str, ...]]
    least: Mapping[Who, int]
    finished: bool = True


def of_outcome(outcome: PlaygroundOutcome) -> Entry:
    """What a finished run found."""
    return Entry(
        image=outcome.picked.key,
        name=outcome.picked.name,
        setup=outcome.setup,
        broken={
            who: _unique(ATTACKS[submission.found_by] for submission in outcome.breaks(who))
            for who in WHO
        },
        least={who: outcome.least_right(who) for who in WHO},
    )


def of_stopped(setup: Setup, picked: Picked, looks: Mapping[CourseName, Sequence[Look]]) -> Entry:
    """What a run had seen when it was stopped."""
    broken: dict[Who, tuple[str, ...]] = dict.fromkeys(WHO, ())
    for course, course_looks in looks.items():
        if not all(look.right for look in course_looks):
            who = asked_by(course)
            broken[who] = _unique((*broken[who], ATTACKS[course]))
    return Entry(picked.key, picked.name, setup, broken, least={}, finished=False)


def remember(entries: Sequence[Entry], entry: Entry) -> tuple[Entry, ...]:
    """Return the entries with one more, the oldest forgotten where there are too many."""
    return (*entries, entry)[-MOST:]


def earlier_breaks(entries: Sequence[Entry], now: Entry, who: Who) -> tuple[Entry, ...]:
    """Return the entries that broke the same image within the threat model of this one.

    The rest of the batch and the seed may differ, since an attacker may choose both.
    """
    return tuple(
        entry for entry in entries if _comparable(entry, now, who) and entry.broken.get(who)
    )


def least_right(entries: Sequence[Entry], now: Entry, who: Who) -> int:
    """Return the fewest members right in this run and earlier ones of its batch and threat."""

    def batch(entry: Entry) -> tuple[int, int, str]:
        return entry.setup.batch_size, entry.setup.seed, entry.setup.target

    same_batch = [
        entry.least[who]
        for entry in entries
        if entry.finished and batch(entry) == batch(now) and _comparable(entry, now, who)
    ]
    return min([now.least[who], *same_batch])


def _comparable(entry: Entry, now: Entry, who: Who) -> bool:
    """Return whether an entry is about the same image and the same static model or defense."""
    earlier, current = entry.setup, now.setup
    return (
        (entry.image, earlier.model, earlier.threat.norm)
        == (now.image, current.model, current.threat.norm)
        and earlier.threat.eps <= current.threat.eps
        and (who == "static" or earlier.config == current.config)
    )


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
