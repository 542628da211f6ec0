"""The verdict, case by case, and on defenses whose truth is known."""

from itertools import product
from typing import Any

import pytest

from dent.attacks.adaptive import NOT_AVAILABLE
from dent.evaluation import Settings, describe, suite
from dent.evaluation.conclusion import (
    FEW_BATCHES,
    FOLLOW_UPS,
    UNFINISHED,
    conclude,
    gates_of,
    with_verdicts,
)
from dent.evaluation.diagnostics import CERTIFICATE
from dent.evaluation.result import (
    AttackSummary,
    Count,
    DefenseResult,
    Dependence,
    Diagnostic,
    Difference,
    Gate,
    Verdict,
)
from dent.evaluation.scoring import Piece, Scores
from dent.evaluation.spec import STATIC, EvaluationSpec
from dent.evaluation.suite import members
from tests.evaluation.subjects import make_subject

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


@pytest.fixture(scope="module")
def spec() -> EvaluationSpec:
    """Of a run of the whole suite on dent."""
    subject = make_subject(attacks=suite("dynamic", "small"))
    return describe(subject, Settings(n=8, batch_size=8))


def found(
    raised: tuple[str, ...] = (), side: str = "above", **attack: dict[str, Any]
) -> DefenseResult:
    """What is looked at of a defense that every attack of the suite met."""
    attacks = (
        AttackSummary.model_construct(
            **{"kind": "attack", "attack": name, "batches": 8, "notes": ()}
            | attack.get(name.replace("-", "_"), {})
        )
        for name in ALL
    )
    return DefenseResult.model_construct(
        attacks=tuple(attacks),
        diagnostics=tuple(diagnostic(name, "raised") for name in raised),
        difference=difference(side),
        dependence=Dependence(declared=False, measured=False),
        verdict=None,
    )


def scores(batches: int, right: bool = True) -> Scores:
    piece = Piece(attacked=(right,) * 8, company=(), missing=0)
    natural = dict.fromkeys(range(batches), piece)
    return Scores({"natural": natural}, {}, None, tuple(range(batches)))


def ruled(
    spec: EvaluationSpec,
    defended: DefenseResult,
    static: DefenseResult | None = None,
    *,
    batches: int = 8,
    right: bool = True,
    complete: bool = True,
) -> Verdict:
    reference = (static or found()).model_copy(update={"difference": None})
    results = {STATIC: reference, "dent": defended}
    by_name = {STATIC: scores(batches), "dent": scores(batches, right)}
    judged = with_verdicts(results, by_name, spec, complete=complete)
    assert judged[STATIC].verdict is None
    verdict = judged["dent"].verdict
    assert verdict is not None
    return verdict


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("measured", [False, True, None])
def test_a_gain_of_members_that_share_an_adaptation_takes_eight_batches(
    spec: EvaluationSpec, declared: bool, measured: bool | None
) -> None:
    dependence = Dependence(declared=declared, measured=measured)
    defended = found().model_copy(update={"dependence": dependence})
    assert ruled(spec, defended, batches=8).ruling == "robust gain"
    few = ruled(spec, defended, batches=7)
    shared = declared or measured is True
    assert few.ruling == ("inconclusive" if shared else "robust gain")
    assert [each.name for each in few.gates] == ([FEW_BATCHES] if shared else [])


def test_a_run_that_is_not_finished_rules_on_nobody(spec: EvaluationSpec) -> None:
    for side in ("above", "below", "level"):
        verdict = ruled(spec, found(side=side), complete=False)
        assert verdict.ruling == "inconclusive"
        assert [each.name for each in verdict.gates] == [UNFINISHED]
        assert verdict.gates == verdict.static_gates


@pytest.mark.parametrize(
    "lacking",
    [
        {"notes": (f"{NOT_AVAILABLE}bpda: it has no unwrap()",)},
        {"batches": 0},
        {"kind": "transfer"},
    ],
    ids=["not available", "not recorded", "only transferred"],
)
def test_a_follow_up_that_did_not_attack_shuts_no_gate(
    spec: EvaluationSpec, lacking: dict[str, Any]
) -> None:
    assert ruled(spec, found(("zero gradient",))).ruling == "robust gain"
    verdict = ruled(spec, found(("zero gradient",), adaptive_bpda=lacking))
    assert verdict.ruling == "inconclusive"
    (only,) = verdict.gates
    assert (only.open, only.follow_ups) == (True, ("square", "rays"))


def test_doubts_about_the_static_model_stand_in_the_way_of_harm_alone(
    spec: EvaluationSpec,
) -> None:
    doubtful = found(("carries state",))
    assert ruled(spec, found(side="below")).ruling == "harmful"
    assert ruled(spec, found(side="below"), doubtful).ruling == "inconclusive"
    assert ruled(spec, found(side="above"), doubtful).ruling == "robust gain"
    assert ruled(spec, found(("carries state",), "below")).ruling == "harmful"


def test_natural_accuracy_lost_for_nothing_is_harm(spec: EvaluationSpec) -> None:
    verdict = ruled(spec, found(side="level"), right=False)
    assert (verdict.ruling, verdict.natural.value) == ("harmful", -1)
    assert ruled(spec, found(side="level")).ruling == "no gain"


def test_who_was_not_compared_or_not_met_by_the_whole_suite_has_no_verdict(
    spec: EvaluationSpec,
) -> None:
    both = {STATIC: scores(8), "dent": scores(8)}
    alone = with_verdicts({"dent": found()}, both, spec, complete=True)
    assert alone["dent"].verdict is None
    less = spec.model_copy(update={"attacks": spec.attacks[1:]})
    judged = with_verdicts({STATIC: found(), "dent": found()}, both, less, complete=True)
    assert judged["dent"].verdict is None
