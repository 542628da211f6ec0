"""The verdict, case by case, and on defenses whose truth is known."""

from itertools import product
from typing import Any

import pytest

from dent.evaluation.conclusion import (
    FOLLOW_UPS,
    UNFINISHED,
    conclude,
    gates_of,
)
from dent.evaluation.diagnostics import CERTIFICATE
from dent.evaluation.result import Count, Diagnostic, Difference, Gate
from dent.evaluation.suite import members

SIDES: dict[str, tuple[float, float] | None] = {
    "above": (0.01, 0.2),
    "touching from above": (0.0, 0.2),
    "level": (-0.1, 0.1),
    "touching from below": (-0.2, 0.0),
    "below": (-0.2, -0.01),
    "unknown": None,
}


def difference(side: str) -> Difference:
    interval = SIDES[side]
    return Difference(
        value=None if interval is None else sum(interval) / 2,
        interval=interval,
        method="tango",
        assumes="",
        total=100,
        only_defended=3,
        only_static=3,
        static=Count.of(50, 100),
        static_unit="sample",
    )


def gate(name: str, *, is_open: bool) -> Gate:
    return Gate(name=name, open=is_open, follow_ups=(), sentence="")


SHUT, OPEN = gate("zero gradient", is_open=False), gate("zero gradient", is_open=True)
END = gate(UNFINISHED, is_open=True)


def expected(side: str, natural: str, own: tuple[Gate, ...], static: tuple[Gate, ...]) -> str:
    """The rules of docs/evaluation/suite.md, in their words."""
    if END in own or side == "unknown":
        return "inconclusive"
    if side == "above":
        return "inconclusive" if OPEN in own else "robust gain"
    if side == "below":
        return "inconclusive" if OPEN in static else "harmful"
    return "harmful" if natural == "below" else "no gain"


GATES: list[tuple[Gate, ...]] = [(), (SHUT,), (OPEN,), (SHUT, OPEN), (END,)]


@pytest.mark.parametrize(("side", "natural"), list(product(SIDES, ["above", "level", "below"])))
def test_every_case(side: str, natural: str) -> None:
    for own, static in product(GATES, GATES[:4]):
        found = conclude("small", difference(side), difference(natural), own, static)
        assert found.ruling == expected(side, natural, own, static)
        assert found.sentence.lower().startswith(found.ruling)
        if found.ruling == "robust gain":
            assert not any(each.open for each in own)
        if found.ruling == "inconclusive" and side == "above" and END not in own:
            assert "zero gradient" in found.sentence


def test_harmful_says_in_what() -> None:
    def why(side: str, natural: str) -> str:
        return conclude("full", difference(side), difference(natural), (), ()).sentence

    assert "(full): robust accuracy is lower" in why("below", "level")
    assert "robust and natural accuracy are lower" in why("below", "below")
    assert "natural accuracy is lower, and no robust gain" in why("level", "below")


def diagnostic(name: str, state: Any) -> Diagnostic:
    return Diagnostic(name=name, state=state, value=None, threshold=None, sentence="It is so.")


ALL = [member.name for member in members("dynamic", "small")]


@pytest.mark.parametrize("name", FOLLOW_UPS)
def test_a_raised_diagnostic_is_shut_by_its_follow_ups_alone(name: str) -> None:
    asked = FOLLOW_UPS[name]
    assert set(asked) <= set(ALL)  # every budget has them
    for state in ("passed", "not-run"):
        assert gates_of([diagnostic(name, state)], ()) == ()
    raised = [diagnostic(name, "raised")]
    (found,) = gates_of(raised, ALL)
    assert (found.open, found.follow_ups) == (not asked, asked)
    for attack in asked:
        (without,) = gates_of(raised, [each for each in ALL if each != attack])
        assert without.open
        assert attack in without.sentence
        assert attack not in without.follow_ups


def test_a_certificate_that_failed_or_could_not_be_had_is_open() -> None:
    assert gates_of([diagnostic(CERTIFICATE, "passed")], ALL) == ()
    for state in ("raised", "not-run"):
        (found,) = gates_of([diagnostic(CERTIFICATE, state)], ALL)
        assert (found.name, found.open, found.sentence) == (CERTIFICATE, True, "It is so.")


def test_what_counts_as_wrong_is_no_doubt() -> None:
    assert gates_of([diagnostic("non-finite", "raised")], ()) == ()
