"""The rules of the verdict, case by case, on constructed results."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any, get_args

import pytest
from scipy.stats import multinomial

from dent.attacks.adaptive import NOT_AVAILABLE
from dent.evaluation import Settings, describe, suite
from dent.evaluation.attack_kinds import kind_of_attack
from dent.evaluation.probe.gradient_check import CHECKS
from dent.evaluation.records.plan import Batch
from dent.evaluation.records.schema import (
    Comparison,
    FollowUp,
    GradientPoint,
    GradientRecord,
    ProbeRecord,
    UnitRecord,
)
from dent.evaluation.records.spec import STATIC, Budget, EvaluationSpec
from dent.evaluation.results.another_attack import BREAKS_MORE, NOT_COMPARED, AnotherAttack
from dent.evaluation.results.certificate import CERTIFICATE
from dent.evaluation.results.diagnostics import HUGE_EPS, SIGHTED, of_run
from dent.evaluation.results.gates import (
    FEW_BATCHES,
    GATE_CONDITIONS,
    LARGE_STEPS,
    MORE_CLASSES,
    NO_TRANSFERS,
    NOT_IN_FIRST,
    OLDER,
    UNDECLARED,
    UNFINISHED,
    Evidence,
    evidence_of,
    gain_gates,
    gates_of,
    ground_of,
)
from dent.evaluation.results.gradient_comparison import GradientComparison
from dent.evaluation.results.intervals import tango
from dent.evaluation.results.mistakes import AT_CHANCE
from dent.evaluation.results.result import (
    AttackSummary,
    Count,
    Decision,
    DefenseResult,
    Dependence,
    Diagnostic,
    Difference,
    Gate,
    Ground,
    Verdict,
)
from dent.evaluation.results.scoring import Piece, Scores, piece_of
from dent.evaluation.results.verdict import RULES, Differences, conclude, with_verdicts
from dent.evaluation.suite_attacks import VERSION
from dent.evaluation.suites import suite_attacks, suite_specs
from dent.report import wording
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
    more, less = {"above": (10, 0), "below": (0, 10)}.get(side, (3, 3))
    return Difference(
        value=None if interval is None else sum(interval) / 2,
        interval=interval,
        method="tango",
        assumes="",
        total=100,
        only_defended=more,
        only_static=less,
        static=Count.of(50, 100),
        static_unit="sample",
    )


def concluded(
    robust: Difference,
    natural: Difference,
    own: tuple[Gate, ...] = (),
    static: tuple[Gate, ...] = (),
    *,
    budget: Budget = "small",
    **changes: Any,
) -> Verdict:
    """Return the verdict on a defense with a certified gradient."""
    changes = {"ground": "exact gradient certified"} | changes
    return conclude(budget, Differences(robust, natural), own, static, **changes)


def gate(name: str, *, is_open: bool) -> Gate:
    return Gate(name=name, open=is_open, sentence="")


CLOSED, OPEN = gate("zero gradient", is_open=False), gate("zero gradient", is_open=True)
END = gate(UNFINISHED, is_open=True)


def expected(side: str, natural: str, own: tuple[Gate, ...], static: tuple[Gate, ...]) -> str:
    """Oracle for the verdict: the rules of docs/evaluation/suite.md."""
    if END in own or side == "unknown":
        return "inconclusive"
    if side == "above":
        return "inconclusive" if OPEN in own else "robust gain"
    if side == "below":
        return "inconclusive" if OPEN in static else "harmful"
    if natural == "below":
        return "inconclusive" if OPEN in static else "harmful"
    return "no gain"


GATES: list[tuple[Gate, ...]] = [(), (CLOSED,), (OPEN,), (CLOSED, OPEN), (END,)]


@pytest.mark.parametrize(("side", "natural"), list(product(SIDES, ["above", "level", "below"])))
def test_the_verdict_follows_the_rules_for_every_combination(side: str, natural: str) -> None:
    for own, static in product(GATES, GATES[:4]):
        found = concluded(difference(side), difference(natural), own, static)
        assert found.ruling == expected(side, natural, own, static)
        assert found.sentence.lower().startswith(found.ruling)
        if found.ruling == "robust gain":
            assert not any(each.open for each in own)
            assert ("clean accuracy is lower" in found.sentence) == (natural == "below")
        if found.ruling == "inconclusive" and side == "above" and END not in own:
            assert "zero gradient" in found.sentence


def test_a_verdict_ends_with_the_versions_of_suite_and_rules() -> None:
    found = concluded(difference("level"), difference("level"))
    assert found.sentence.endswith(
        f". Version {found.version} of the suite, version {found.rules} of the rules."
    )


@pytest.mark.parametrize(
    ("samples", "ruling", "said"),
    [
        (4, "inconclusive", ": 4 samples cannot show any gain."),
        (8, "no gain", "and a gain below +76.0 points can go unseen with 8 samples."),
        (256, "no gain", "and a gain below +5.3 points can go unseen with 256 samples."),
        (1024, "no gain", "): the interval of the difference contains 0. Version"),
    ],
)
def test_no_gain_states_the_gain_that_the_samples_can_detect(
    samples: int, ruling: str, said: str
) -> None:
    level = difference("level").model_copy(update={"total": samples})
    found = concluded(level, difference("level"))
    assert found.ruling == ruling
    assert said in found.sentence


def counted_pairs(more: int, less: int, samples: int) -> Difference:
    """Return the difference of samples of which the defense has more, and the static model less."""
    counts = {"total": samples, "only_defended": more, "only_static": less}
    ends = {"value": (more - less) / samples, "interval": tango(more, less, samples)}
    return difference("level").model_copy(update=counts | ends)


@pytest.mark.parametrize(
    ("more", "less", "samples", "ruling"),
    [
        (4, 0, 4, "inconclusive"),
        (5, 0, 5, "inconclusive"),
        (7, 1, 8, "no gain"),
        (8, 0, 8, "robust gain"),
        (1, 7, 8, "no gain"),
        (0, 8, 8, "harmful"),
    ],
)
def test_a_gain_or_loss_on_few_samples_needs_the_exact_sign_test(
    more: int, less: int, samples: int, ruling: str
) -> None:
    robust = counted_pairs(more, less, samples)
    assert robust.interval is not None
    assert robust.interval[0] > 0 or robust.interval[1] < 0
    verdict = concluded(robust, counted_pairs(0, 0, samples))
    assert verdict.ruling == ruling
    chance = "the difference may be chance (exact sign test, p = 0.07)"
    assert (chance in verdict.sentence) == (ruling == "no gain")


def test_no_number_of_samples_gives_a_false_gain_in_more_than_one_of_forty_runs() -> None:
    for samples in (4, 5, 6, 8, 12):
        pairs = [(a, b) for a, b in product(range(samples + 1), repeat=2) if a + b <= samples]
        gains = [
            (a, b)
            for a, b in pairs
            if concluded(counted_pairs(a, b, samples), counted_pairs(0, 0, samples)).ruling
            == "robust gain"
        ]
        for share in (0.1, 0.25, 0.4, 0.5):
            model = multinomial(samples, [share, share, 1 - 2 * share])
            assert sum(model.pmf([a, b, samples - a - b]) for a, b in gains) <= 0.025


def test_a_stopped_run_states_the_bound_on_the_difference_at_its_stop() -> None:
    decided = Decision(after=0, of=18, at_most=0.0, below=False)
    found = concluded(difference("level"), difference("level"), decided=decided)
    assert "at most 0.0 [−10.0, +10.0] after transfer from the static model; " in found.sentence
    later = decided.model_copy(update={"after": 2, "at_most": 0.1})
    found = concluded(difference("level"), difference("level"), decided=later)
    assert "at most +10.0 after 2 of 18 attacks; " in found.sentence


def test_adaptive_transfer_is_a_white_box_attack_on_the_static_model() -> None:
    spec = {each.attack: each for each in suite_specs("small", "linf", False, VERSION)}
    assert kind_of_attack(spec["adaptive-transfer"]) == "transfer"
    assert kind_of_attack(spec["adaptive-transfer"], on_static=True) == "white-box"
    assert kind_of_attack(spec["surrogates"], on_static=True) == "transfer"


def test_harmful_states_which_accuracy_is_lower() -> None:
    def why(side: str, natural: str) -> str:
        return concluded(difference(side), difference(natural), budget="full").sentence

    assert "(full): robust accuracy is lower" in why("below", "level")
    assert "robust and clean accuracy are lower" in why("below", "below")
    assert "clean accuracy is lower, and no robust gain" in why("level", "below")


def diagnostic(name: str, state: Any) -> Diagnostic:
    return Diagnostic(name=name, state=state, value=None, threshold=None, sentence="It is so.")


ALL = [each.name for each in suite_attacks("dynamic", "small")]
GONE = GradientComparison(samples=200, black_box=-3, transfer=0, without_gradient=0, unbroken=90)


def evidence(**changes: Any) -> Evidence:
    """Return the evidence of a defense that the whole suite attacked, without any symptom."""
    return replace(Evidence(ran=ALL, symptoms=GONE, drawn=True, large_steps=True), **changes)


@pytest.mark.parametrize("name", GATE_CONDITIONS)
def test_gates_without_symptoms_are_closed_except_those_that_no_attack_closes(name: str) -> None:
    for state in ("passed", "not-run"):
        if name != HUGE_EPS:
            assert gates_of([diagnostic(name, state)], evidence()) == ()
    (found,) = gates_of([diagnostic(name, "raised")], evidence())
    assert found.open == (name in FOR_GOOD)


FOR_GOOD = {
    "carries state",
    "undeclared dependence",
    "more iterations still help",
    "huge eps does not break all",
    "served differs with gradients",
    "cannot be copied",
}
"""Diagnostics whose gate no attack can close."""


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("randomized", {"drawn": False}),
        ("randomized", {"ran": [each for each in ALL if each != "eot"]}),
        ("served differs from claimed", {"drawn": False}),
        ("not logits", {"symptoms": replace(GONE, without_gradient=1)}),
        ("not logits", {"symptoms": replace(GONE, transfer=3)}),
        ("not logits", {"symptoms": replace(GONE, without_gradient=None)}),
        ("zero gradient", {"symptoms": replace(GONE, without_gradient=1)}),
        ("zero gradient", {"symptoms": replace(GONE, black_box=3)}),
        ("no gradient where members stand", {"symptoms": replace(GONE, without_gradient=1)}),
        ("black-box beats white-box", {"symptoms": replace(GONE, black_box=3)}),
        ("black-box beats white-box", {"symptoms": replace(GONE, black_box=None)}),
        ("transfer beats white-box", {"symptoms": replace(GONE, transfer=3)}),
        ("transfer beats white-box", {"symptoms": replace(GONE, transfer=None)}),
        ("batch dependent", {"ran": [each for each in ALL if each != "gmsa-min"]}),
    ],
)
def test_a_gate_is_open_while_a_symptom_remains_or_an_attack_is_missing(
    name: str, left: dict[str, Any]
) -> None:
    (found,) = gates_of([diagnostic(name, "raised")], evidence(**left))
    assert found.open
    (shut,) = gates_of([diagnostic(name, "raised")], evidence())
    assert found.sentence != shut.sentence


def test_the_randomized_gate_is_closed_if_attacks_knew_the_seed() -> None:
    (gate,) = gates_of([diagnostic("randomized", "raised")], evidence(drawn=False, known=True))
    assert not gate.open
    assert "knew the seed" in gate.sentence
    (other,) = gates_of([diagnostic("carries state", "raised")], evidence(known=True))
    assert other.open


def test_black_box_attacks_may_lead_by_one_percent_before_the_gate_opens() -> None:
    for ahead, is_open in ((2, False), (3, True)):
        found = evidence(symptoms=replace(GONE, black_box=ahead))
        (gate,) = gates_of([diagnostic("black-box beats white-box", "raised")], found)
        assert gate.open == is_open


def test_the_huge_eps_gate_is_open_if_its_diagnostic_did_not_run() -> None:
    (found,) = gates_of([diagnostic(HUGE_EPS, "not-run")], evidence())
    assert found.open


@pytest.mark.parametrize("huge", ["passed", "raised", "not-run"])
@pytest.mark.parametrize("state", ["passed", "raised", "not-run"])
def test_the_ground_for_a_gain_depends_on_certificate_huge_eps_and_symptoms(
    state: str, huge: str
) -> None:
    told = [diagnostic(CERTIFICATE, state), diagnostic(HUGE_EPS, huge)]
    none: tuple[dict[str, Any], ...] = (
        {"large_steps": False},
        {"large_steps": None},
        {"symptoms": replace(GONE, without_gradient=1)},
        {"symptoms": replace(GONE, without_gradient=None)},
    )
    weaker = (
        {"symptoms": replace(GONE, black_box=3)},
        {"symptoms": replace(GONE, transfer=None)},
    )
    assert not any(ground_of(told, evidence(**each)) for each in none)
    if state == "passed":
        assert all(ground_of(told, evidence(**each)) == EXACT for each in weaker)
    else:
        best = ground_of(told, evidence())
        assert best == (SURROGATE if huge == "passed" else None)
        assert not any(ground_of(told, evidence(**each)) for each in weaker)
        (gate, *_) = (each for each in gates_of(told, evidence()) if each.name == CERTIFICATE)
        assert gate.open == (best is None)


EXACT, SURROGATE = get_args(Ground)


@pytest.mark.parametrize("measured", [False, None])
def test_a_certified_gradient_must_also_be_valid_over_large_steps(measured: bool | None) -> None:
    told = [diagnostic(CERTIFICATE, "passed")]
    (gate,) = gates_of(told, evidence(large_steps=measured))
    assert (gate.name, gate.open) == (LARGE_STEPS, True)
    assert ("older version" in gate.sentence) == (measured is None)
    assert gates_of(told, evidence()) == ()


def test_more_logits_than_classes_open_a_gate() -> None:
    (gate,) = gates_of([], evidence(surplus=3))
    assert (gate.name, gate.open) == (MORE_CLASSES, True)
    assert "3 logits more" in gate.sentence


def test_an_attack_that_breaks_more_than_the_whole_run_opens_a_gate() -> None:
    (gate,) = gates_of([], evidence(another=AnotherAttack(3, 3, 32)))
    assert (gate.name, gate.open) == (BREAKS_MORE, True)
    assert "broke 3 members of 32" in gate.sentence
    for more, members in ((2, 32), (1, 8), (1, 1), (-5, 32)):
        assert gates_of([], evidence(another=AnotherAttack(more, more, members))) == ()
    assert gates_of([], evidence(another=None)) == ()


@pytest.mark.parametrize(
    ("correct", "names"),
    [
        (24, []),
        (23, []),
        (22, [NOT_COMPARED]),
        (7, [NOT_COMPARED]),
        (6, [BREAKS_MORE]),
        (0, [BREAKS_MORE]),
    ],
)
def test_the_attack_toward_every_class_is_compared_with_mixed_batches_by_bounds(
    spec: EvaluationSpec, correct: int, names: list[str]
) -> None:
    """All 8 attacked members are correct in the run; 16 others are clean there."""
    told = evidence_of(found(), followed_up(scores(8, clean=(True,) * 16), correct), spec, {})
    gates = gates_of((), told)
    assert [each.name for each in gates if each.open] == names
    for gate in gates:
        text = {NOT_COMPARED: f"up to {min(8, 24 - correct)} more", BREAKS_MORE: "at least"}[
            gate.name
        ]
        assert text in gate.sentence


def test_one_attacked_member_of_a_mixed_batch_shows_nothing() -> None:
    (gate,) = gates_of([], evidence(another=AnotherAttack(0, 1, 1, clean=15)))
    assert (gate.name, gate.open) == (NOT_COMPARED, True)
    assert gates_of([], evidence(another=AnotherAttack(0, 0, 1, clean=15))) == ()


def test_mixed_batches_gain_only_if_the_attack_toward_every_class_can_be_compared(
    spec: EvaluationSpec,
) -> None:
    clean = (True,) * 8
    reference = found().model_copy(update={"difference": None})
    for correct, ruling in ((16, "robust gain"), (12, "inconclusive")):
        by_name = {
            # A doubt about the static model does not count: only a claim of a gain needs this.
            STATIC: followed_up(scores(8, clean=clean, robust=False), 12),
            "dent": followed_up(scores(8, clean=clean), correct),
        }
        for side, expected in (("above", ruling), ("below", "harmful"), ("level", "no gain")):
            verdict = judge({STATIC: reference, "dent": found(side=side)}, by_name, spec)[
                "dent"
            ].verdict
            assert verdict is not None
            assert verdict.ruling == expected


@pytest.mark.parametrize(
    ("correct", "of_static", "gain", "opened"),
    [
        (7, 0, 0.3, []),
        (7, 0, 0.2, [BREAKS_MORE]),
        (7, -1, 0.2, []),  # the attack also breaks one more member of the static model
        (7, 3, 0.2, [BREAKS_MORE]),
        (8, 0, 0.02, []),
        (7, 0, -0.2, []),
    ],
)
def test_an_attack_that_breaks_half_of_the_gain_in_the_first_batch_opens_a_gate(
    spec: EvaluationSpec, correct: int, of_static: int, gain: float, opened: list[str]
) -> None:
    differs = difference("above").model_copy(update={"value": gain})
    result = found().model_copy(update={"difference": differs})
    static = scores(8, robust=False)

    def told(scored: Scores, left: int) -> tuple[Evidence, Scores]:
        return replace(
            evidence_of(result, scored, spec, {}), another=AnotherAttack(left, left, 8)
        ), scored

    gates = gain_gates(result, told(scores(8), 8 - correct), told(static, -of_static))
    assert [each.name for each in gates] == opened


def test_a_gain_must_be_in_the_first_batch() -> None:
    result = found()
    for robust, opened in ((False, []), (True, [NOT_IN_FIRST])):
        own = evidence(another=AnotherAttack(0, 0, 8)), scores(8)
        static = evidence(another=AnotherAttack(0, 0, 8)), scores(8, robust=robust)
        assert [each.name for each in gain_gates(result, own, static)] == opened
    unchecked = evidence(another=None), scores(8)
    assert gain_gates(result, unchecked, static) == ()


def test_noise_that_drowns_the_gradient_keeps_the_gate_of_randomized_defenses_open() -> None:
    told = [diagnostic("randomized", "raised")]
    for agreement, is_open in ((0.05, True), (0.3, False), (None, False)):
        (gate,) = gates_of(told, evidence(drawn=True, agreement=agreement))
        assert gate.open == is_open
        assert ("drowns" in gate.sentence) == is_open
    (known,) = gates_of(told, evidence(known=True, agreement=0.05))
    assert not known.open


def test_the_first_batch_is_compared_with_the_attack_toward_every_class(
    spec: EvaluationSpec,
) -> None:
    for correct, opened in ((8, []), (7, []), (4, [BREAKS_MORE])):
        told = evidence_of(found(), followed_up(scores(8), correct), spec, {})
        assert [each.name for each in gates_of((), told)] == opened


SAME = Comparison(members=4, changed=0, distance=0.0)
OTHER = Comparison(members=4, changed=1, distance=0.5)
"""Answers to other queries: the same, and another."""

UNCHECKED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("no queries to the copy", {"calls": None}, {}, "whether it can be copied"),
    ("no search for memory", {"shares": None}, {}, "whether copies share a memory"),
    ("no second gradient", {"again_gradient": None}, {}, "gradients change after queries"),
    ("no version of the checks", {}, {"checks": None}, "today's checks"),
    ("an older version of the checks", {}, {"checks": CHECKS - 1}, "today's checks"),
    ("no number of logits", {}, {"classes": None}, "the number of logits"),
    ("no further attack", {}, {"further": None}, "toward every class"),
    ("noise, no agreement", {"repeated": OTHER}, {}, "gradients under other seeds"),
]


@pytest.mark.parametrize(
    ("probed", "checked", "said"),
    [case[1:] for case in UNCHECKED],
    ids=[each[0] for each in UNCHECKED],
)
def test_a_check_that_is_not_recorded_opens_a_gate(
    spec: EvaluationSpec, probed: dict[str, Any], checked: dict[str, Any], said: str
) -> None:
    attacked = scores(8)
    assert attacked.probe is not None
    assert attacked.probe.gradient is not None
    gradient = attacked.probe.gradient.model_copy(update=checked)
    probe = attacked.probe.model_copy(update={"gradient": gradient, **probed})
    told = evidence_of(found(), replace(attacked, probe=probe), spec, {})
    (gate,) = gates_of((), told)
    assert (gate.name, gate.open) == (OLDER, True)
    assert said in gate.sentence


def test_a_gradient_compared_at_two_points_only_opens_a_gate(spec: EvaluationSpec) -> None:
    attacked = scores(8)
    assert attacked.probe is not None
    assert attacked.probe.gradient is not None
    points = attacked.probe.gradient.points
    gradient = attacked.probe.gradient.model_copy(update={"points": points[:2]})
    probe = attacked.probe.model_copy(update={"gradient": gradient})
    (gate,) = gates_of((), evidence_of(found(), replace(attacked, probe=probe), spec, {}))
    assert (gate.name, gate.open) == (OLDER, True)


def test_a_defense_without_gradient_or_copy_lacks_no_check(spec: EvaluationSpec) -> None:
    attacked = scores(8)
    assert attacked.probe is not None
    uncopied = {"shares": None, "uncopied": "it cannot be copied", "again_gradient": None}
    for gradient in (None, GradientRecord(rung="plain", missing="it has no gradient")):
        probe = attacked.probe.model_copy(update={"gradient": gradient, **uncopied})
        told = evidence_of(found(), replace(attacked, probe=probe), spec, {})
        assert gates_of((), told) == ()


def test_unrecorded_gradients_open_a_gate_while_any_member_is_correct() -> None:
    told = [diagnostic(SIGHTED, "not-run")]
    (gate,) = gates_of(told, evidence(symptoms=replace(GONE, without_gradient=None)))
    assert (gate.name, gate.open) == (SIGHTED, True)
    assert gates_of(told, evidence(symptoms=replace(GONE, without_gradient=None, unbroken=0))) == ()


def test_non_finite_predictions_open_no_gate() -> None:
    assert gates_of([diagnostic("non-finite", "raised")], evidence()) == ()


@pytest.fixture(scope="module")
def spec() -> EvaluationSpec:
    """Return the specification of a run of the whole suite on Dent."""
    subject = make_subject(attacks=suite("dynamic", "small"))
    return describe(subject, Settings(n=8, batch_size=8))


def found(
    raised: tuple[str, ...] = (), side: str = "above", **attack: dict[str, Any]
) -> DefenseResult:
    """Return the result of a defense that the whole suite attacked, as far as verdicts use it."""
    attacks = (
        AttackSummary.model_construct(
            **{"kind": "attack", "attack": name, "batches": 8, "notes": ()}
            | attack.get(name.replace("-", "_"), {})
        )
        for name in ALL
    )
    return DefenseResult.model_construct(
        attacks=tuple(attacks),
        diagnostics=(
            *(diagnostic(name, "raised") for name in raised),
            diagnostic(HUGE_EPS, "passed"),
            diagnostic(CERTIFICATE, "passed"),
        ),
        difference=difference(side),
        dependence=Dependence(declared=False, measured=False),
        verdict=None,
    )


def scores(
    batches: int, right: bool = True, clean: Sequence[bool] = (), *, robust: bool = True
) -> Scores:
    """Return the scores of a defense with a certified gradient, as far as verdicts use them.

    Args:
        batches: The number of batches.
        right: Whether every member is correct in every submission.
        clean: Whether each clean member is correct in the attacked batches. In the natural ones,
            all are correct.
        robust: Whether the members that are right stay so under attack.
    """
    piece = Piece(attacked=(right,) * 8, clean=tuple(clean), missing=0)
    attacked_piece = replace(piece, attacked=(right and robust,) * 8)
    pieces = dict.fromkeys(range(batches), attacked_piece)
    natural = replace(piece, clean=(True,) * len(clean))
    attacked = tuple(
        UnitRecord.model_construct(
            batch=index, backwards=9, gradients=(9,) * 8, zero_gradients=(0,) * 8, draws=()
        )
        for index in range(batches)
    )
    point = GradientPoint(members=8, errors=(0.0,) * 8, alike=1, same=8, of=8, coarse=(0.1,) * 8)
    probe = ProbeRecord.model_construct(
        repeated=SAME,
        again=SAME,
        calls=8,
        again_gradient=0.0,
        shares=False,
        gradient=GradientRecord(
            rung="plain",
            points=(point,) * 3,
            classes=2,
            checks=CHECKS,
            further=FollowUp(
                attack="every class",
                total=8 + len(clean),
                correct=8 * right + len(clean),
                before=None,
            ),
        ),
    )
    submissions = {"natural": dict.fromkeys(pieces, natural), "attack/apgd-ce": pieces}
    return Scores(submissions, {"attack/apgd-ce": attacked}, probe, tuple(range(batches)))


def followed_up(attacked: Scores, correct: int) -> Scores:
    """Return the scores with another number of correct members under the attack on all of them."""
    assert attacked.probe is not None
    gradient = attacked.probe.gradient
    assert gradient is not None
    assert gradient.further is not None
    further = gradient.further.model_copy(update={"correct": correct})
    gradient = gradient.model_copy(update={"further": further})
    return replace(attacked, probe=attacked.probe.model_copy(update={"gradient": gradient}))


def judge(
    results: dict[str, DefenseResult],
    by_name: dict[str, Scores],
    spec: EvaluationSpec,
    *,
    complete: bool = True,
) -> dict[str, DefenseResult]:
    """Return the results with their verdicts; there are no challenges."""
    return with_verdicts(
        results,
        by_name,
        spec,
        complete=complete,
        without_static_challenges={},
        without_own_challenges={},
    )


def gained(result: DefenseResult) -> bool:
    return result.difference is not None and (result.difference.value or 0.0) > 0


def ruled(
    spec: EvaluationSpec,
    defended: DefenseResult,
    static: DefenseResult | None = None,
    *,
    batches: int = 8,
    right: bool = True,
    complete: bool = True,
    clean: Sequence[bool] = (),
) -> Verdict:
    reference = (static or found()).model_copy(update={"difference": None})
    results = {STATIC: reference, "dent": defended}
    by_name = {
        STATIC: scores(batches, clean=[True] * len(clean), robust=not gained(defended)),
        "dent": scores(batches, right, clean),
    }
    judged = judge(results, by_name, spec, complete=complete)
    assert judged[STATIC].verdict is None
    verdict = judged["dent"].verdict
    assert verdict is not None
    return verdict


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("measured", [False, True, None])
def test_a_gain_of_a_batch_dependent_defense_needs_eight_batches(
    spec: EvaluationSpec, declared: bool, measured: bool | None
) -> None:
    dependence = Dependence(declared=declared, measured=measured)
    defended = found().model_copy(update={"dependence": dependence})
    assert ruled(spec, defended, batches=8).ruling == "robust gain"
    few = ruled(spec, defended, batches=7)
    shared = declared or measured is True
    assert few.ruling == ("inconclusive" if shared else "robust gain")
    assert [each.name for each in few.gates] == ([FEW_BATCHES] if shared else [])


@pytest.mark.parametrize("batches", [7, 8])
def test_a_dependence_that_randomness_hides_prevents_a_gain(
    spec: EvaluationSpec, batches: int
) -> None:
    hidden = Dependence(declared=False, measured=None, undetermined=True)
    unmeasured = Diagnostic.not_run(UNDECLARED, "It cannot be measured on a randomized defense.")
    defended = found().model_copy(update={"dependence": hidden})
    defended = defended.model_copy(update={"diagnostics": (*defended.diagnostics, unmeasured)})
    verdict = ruled(spec, defended, batches=batches)
    opened = [each.name for each in verdict.gates if each.open]
    assert verdict.ruling == "inconclusive"
    assert opened == [UNDECLARED] + [FEW_BATCHES] * (batches < 8)
    assert verdict.natural.assumes.startswith(
        "that samples are" if batches < 8 else "that batches are"
    )


@pytest.mark.parametrize("decided", [False, True])
@pytest.mark.parametrize(("side", "right"), [("below", True), ("level", False)])
def test_a_batch_dependent_defense_is_harmful_only_with_eight_batches(
    spec: EvaluationSpec, side: str, right: bool, decided: bool
) -> None:
    stop = Decision(after=1, of=18, at_most=0.0, below=False) if decided else None
    changes = {"dependence": Dependence(declared=True, measured=True), "decided": stop}
    defended = found(side=side).model_copy(update=changes)
    assert ruled(spec, defended, right=right, batches=8).ruling == "harmful"
    few = ruled(spec, defended, right=right, batches=7)
    assert (few.ruling, [each.name for each in few.gates]) == ("inconclusive", [FEW_BATCHES])
    assert FEW_BATCHES in few.sentence
    alike = found(side="level").model_copy(update=changes)
    assert ruled(spec, alike, batches=7).ruling == "no gain"


def test_the_verdict_is_inconclusive_if_only_the_static_model_is_at_chance(
    spec: EvaluationSpec,
) -> None:
    verdict = ruled(spec, found(), found((AT_CHANCE,)))
    assert verdict.ruling == "inconclusive"
    assert f"{AT_CHANCE} (static)" in verdict.sentence


def test_verdicts_of_an_unfinished_run_are_inconclusive(spec: EvaluationSpec) -> None:
    for side in ("above", "below", "level"):
        verdict = ruled(spec, found(side=side), complete=False)
        assert verdict.ruling == "inconclusive"
        assert [each.name for each in verdict.gates] == [UNFINISHED]
        assert verdict.gates == verdict.static_gates


@pytest.mark.parametrize("side", ["above", "below", "level"])
def test_the_verdict_is_inconclusive_if_the_models_are_at_chance(
    spec: EvaluationSpec, side: str
) -> None:
    guesses = (AT_CHANCE,)
    verdict = ruled(spec, found(guesses, side), found(guesses))
    assert verdict.ruling == "inconclusive"
    assert f"{AT_CHANCE} (static, dent)" in verdict.sentence
    # A defense that lowers the accuracy of a good model to chance is harmful.
    alone = ruled(spec, found(guesses, side), found())
    assert alone.ruling == ("harmful" if side == "below" else "inconclusive")


@pytest.mark.parametrize(
    "lacking",
    [
        {"notes": (f"{NOT_AVAILABLE}gmsa: it does not adapt",)},
        {"batches": 0},
        {"kind": "transfer"},
    ],
    ids=["not available", "not recorded", "only transferred"],
)
def test_a_gate_stays_open_if_its_follow_up_attack_did_not_run(
    spec: EvaluationSpec, lacking: dict[str, Any]
) -> None:
    assert ruled(spec, found(("batch dependent",))).ruling == "robust gain"
    verdict = ruled(spec, found(("batch dependent",), gmsa_min=lacking))
    assert verdict.ruling == "inconclusive"
    (only,) = verdict.gates
    assert (only.name, only.open) == ("batch dependent", True)
    assert "gmsa-min" in only.sentence


def test_open_gates_of_the_static_model_prevent_only_the_verdict_harmful(
    spec: EvaluationSpec,
) -> None:
    doubtful = found(("carries state",))
    assert ruled(spec, found(side="below")).ruling == "harmful"
    assert ruled(spec, found(side="below"), doubtful).ruling == "inconclusive"
    assert ruled(spec, found(side="above"), doubtful).ruling == "robust gain"
    assert ruled(spec, found(("carries state",), "below")).ruling == "harmful"


@pytest.mark.parametrize("name", ["randomized", "served differs with gradients"])
def test_signs_that_the_numbers_are_too_low_prevent_the_verdict_harmful(
    spec: EvaluationSpec, name: str
) -> None:
    assert ruled(spec, found((name,), "below")).ruling == "inconclusive"
    assert ruled(spec, found((name,), "level")).ruling == "no gain"


def test_a_robust_gain_needs_a_ground_and_states_it_with_the_rules(spec: EvaluationSpec) -> None:
    verdict = ruled(spec, found())
    assert (verdict.ruling, verdict.ground) == ("robust gain", "exact gradient certified")
    assert (verdict.rules, verdict.version) == (RULES, VERSION)
    assert ruled(spec, found(side="level")).ground is None
    nothing = concluded(difference("above"), difference("level"), ground=None)
    assert nothing.ruling == "inconclusive"


def test_a_verdict_cannot_be_made_without_naming_its_ground() -> None:
    both = Differences(difference("above"), difference("level"))
    with pytest.raises(TypeError, match="ground"):
        conclude("small", both, (), ())  # type: ignore[call-arg]


def test_lower_clean_accuracy_without_a_gain_is_harmful(spec: EvaluationSpec) -> None:
    verdict = ruled(spec, found(side="level"), right=False)
    assert (verdict.ruling, verdict.natural.value) == ("harmful", -1)
    assert ruled(spec, found(side="level")).ruling == "no gain"


@pytest.mark.parametrize("early", [False, True])
def test_a_static_model_that_hides_its_gradient_prevents_the_verdict_harmful(
    spec: EvaluationSpec, early: bool
) -> None:
    # Its worst case may be too high, and then hides a gain that is worth some clean accuracy.
    decided = Decision(after=3, of=18, at_most=0.0, below=False) if early else None
    defended = found(side="level").model_copy(update={"decided": decided})
    verdict = ruled(spec, defended, found(("carries state",)), right=False)
    assert verdict.ruling == "inconclusive"
    assert "carries state (static model)" in verdict.sentence
    assert ruled(spec, defended, right=False).ruling == "harmful"


@pytest.mark.parametrize("side", ["above", "level", "below"])
def test_a_defense_that_breaks_the_clean_members_of_attacked_batches_is_harmful(
    spec: EvaluationSpec, side: str
) -> None:
    dependent = {"dependence": Dependence(declared=True, measured=True)}
    defended = found(side=side).model_copy(update=dependent)
    broken = ruled(spec, defended, clean=[False] * 8)
    assert (broken.ruling, broken.ground) == ("harmful", None)
    assert broken.bystanders is not None
    assert broken.bystanders.value == -1
    if side != "below":
        assert "clean members of attacked batches are correct less often: −100.0" in broken.sentence
    few = ruled(spec, defended, batches=7, clean=[False] * 8)
    assert (few.ruling, FEW_BATCHES in few.sentence) == ("inconclusive", True)
    spared = ruled(spec, defended, clean=[True] * 8)
    assert spared.ruling == {"above": "robust gain", "level": "no gain", "below": "harmful"}[side]
    if side == "above":
        assert "clean members of attacked batches: 0.0 [" in spared.sentence
    lines = wording.verdict(broken)
    assert any(line.startswith("Clean members of attacked batches against") for line in lines)
    assert ruled(spec, defended).bystanders is None


def test_some_draws_choose_the_worst_submission_for_clean_members_and_others_score_it() -> None:
    plan = Batch.model_construct(index=0, positions=(0, 1), ids=(0, 1), labels=(1, 1), attacked=1)
    draws = [[1, 0], [1, 1]]  # the choosing half, then the scoring half
    piece = piece_of(plan, UnitRecord.model_construct(draws=tuple(map(tuple, draws))))
    assert (piece.chooses_clean, piece.clean) == ((0.0,), (1.0,))


def test_a_gain_needs_transfers_and_the_model_itself_as_static_model(spec: EvaluationSpec) -> None:
    alone = spec.model_copy(
        update={"settings": spec.settings.model_copy(update={"transfer": False})}
    )
    assert not any(each.raised for each in of_run(spec, uneven=False, sessions=()))
    static, *others = spec.defenses
    other = static.model_copy(update={"weights": "0" * 64})
    replaced = spec.model_copy(update={"defenses": (other, *others)})
    (raised,) = (each for each in of_run(replaced, uneven=False, sessions=()) if each.raised)
    assert raised.name == "static is not the model"
    for changed, name in ((alone, NO_TRANSFERS), (replaced, raised.name)):
        for side, ruling in (("above", "inconclusive"), ("level", "no gain"), ("below", "harmful")):
            verdict = ruled(changed, found(side=side))
            assert (verdict.ruling, [each.name for each in verdict.gates]) == (ruling, [name])


def test_there_is_no_verdict_without_a_static_model_or_the_whole_suite(
    spec: EvaluationSpec,
) -> None:
    both = {STATIC: scores(8), "dent": scores(8)}
    alone = judge({"dent": found()}, both, spec)
    assert alone["dent"].verdict is None
    less = spec.model_copy(update={"attacks": spec.attacks[1:]})
    judged = judge({STATIC: found(), "dent": found()}, both, less)
    assert judged["dent"].verdict is None
