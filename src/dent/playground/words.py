"""The names of attacks and submissions on the page."""

from collections.abc import Mapping
from typing import Final

from dent.playground.outcome import CourseName, PlaygroundSubmission, asked_by

_COURSES: Final[Mapping[CourseName, str]] = {
    "static": "attacked",
    "transfer": "transfer",
    "stop-gradient": "stop-gradient",
    "unrolled": "unrolled",
}

ATTACKS: Final[Mapping[CourseName | None, str]] = {
    None: "no attack",
    "static": "the attack on static",
    "transfer": "the attack on static",
    "stop-gradient": "stop-gradient",
    "unrolled": "unrolled",
}
"""The names of attacks in a sentence."""


def target(course: CourseName, defense: str) -> str:
    """Return the name of the model or defense that an attack queries."""
    return "static" if asked_by(course) == "static" else defense


def course(name: CourseName) -> str:
    """Return the name of an attack, to be shown beside the name of its target."""
    return _COURSES[name]


def submission(submitted: PlaygroundSubmission) -> str:
    """Return the name of a submission."""
    if submitted.found_by is None:
        return "natural"
    attack = {"static": "against static", "transfer": "against static"}.get(
        submitted.found_by, submitted.found_by
    )
    return attack if submitted.query is None else f"{attack}, query {submitted.query}"
