"""The earlier runs on a page, so that the verdict on a run does not contradict them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dent.playground.images import Picked
from dent.playground.outcome import WHO, CourseName, PlaygroundOutcome, Who, asked_by
from dent.playground.setup import Setup
from dent.playground.watch import Look
from dent.playground.words import ATTACKS

MOST: Final = 200
"""Largest number of runs that a page remembers."""


@dataclass(frozen=True)
class Entry:
    """One run; of a stopped run, the part that was done.

    Attributes:
        image: Key of the image.
        name: Name of the image.
        setup: The setup of the run.
        broken: For the static model and the defense, the names of the attacks under which the
            image was predicted wrongly.
        least: For each of the two, the fewest members of the batch that a submission left
            correct; empty for a stopped run.
        finished: False if the run was stopped.
    """

    image: str
    name: str
    setup: Setup
    broken: Mapping[Who, tuple[str, ...]]
    least: Mapping[Who, int]
    finished: bool = True


def of_outcome(outcome: PlaygroundOutcome) -> Entry:
    """Return the entry of a finished run."""
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
    """Return the entry of a stopped run, from the queries that it had made."""
    broken: dict[Who, tuple[str, ...]] = dict.fromkeys(WHO, ())
    for course, course_looks in looks.items():
        if not all(look.right for look in course_looks):
            who = asked_by(course)
            broken[who] = _unique((*broken[who], ATTACKS[course]))
    return Entry(picked.key, picked.name, setup, broken, least={}, finished=False)


def remember(entries: Sequence[Entry], entry: Entry) -> tuple[Entry, ...]:
    """Return the entries and a new one, without the oldest if there would be more than `MOST`."""
    return (*entries, entry)[-MOST:]


def earlier_breaks(entries: Sequence[Entry], now: Entry, who: Who) -> tuple[Entry, ...]:
    """Return the entries that broke the same image within the threat model of `now`.

    The rest of the batch and the seed may differ, since an attacker may choose both.
    """
    return tuple(
        entry for entry in entries if _comparable(entry, now, who) and entry.broken.get(who)
    )


def least_right(entries: Sequence[Entry], now: Entry, who: Who) -> int:
    """Return the fewest correct members in `now` and in earlier runs on the same batch.

    Earlier runs count if they are within its threat model, and were not stopped.
    """

    def batch(entry: Entry) -> tuple[int, int, str]:
        return entry.setup.batch_size, entry.setup.seed, entry.setup.target

    same_batch = [
        entry.least[who]
        for entry in entries
        if entry.finished and batch(entry) == batch(now) and _comparable(entry, now, who)
    ]
    return min([now.least[who], *same_batch])


def _comparable(entry: Entry, now: Entry, who: Who) -> bool:
    """Return whether an entry has the image and the target of `now`, within its threat model."""
    earlier, current = entry.setup, now.setup
    return (
        (entry.image, earlier.model, earlier.threat.norm)
        == (now.image, current.model, current.threat.norm)
        and earlier.threat.eps <= current.threat.eps
        and (who == "static" or earlier.config == current.config)
    )


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
