"""Attacks that mix queries with gradients are no evidence about the gradients of a defense."""

import pytest

from dent.attacks import make
from dent.evaluation.attack_kinds import AttackKind, kind_of_attack, kinds_of_attacks
from dent.evaluation.attack_specs import attack_spec
from dent.evaluation.records.schema import Trace, UnitRecord, UnitTiming
from dent.evaluation.records.spec import AttackSpec, EvaluationSpec
from dent.evaluation.results.diagnostics import of_defense
from dent.evaluation.results.gates import Evidence, gates_of
from dent.evaluation.results.gradient_comparison import GradientComparison, compare_gradients
from dent.evaluation.results.result import AttackSummary, Count, Dependence, Diagnostic
from dent.evaluation.results.scoring import Piece, Scores
from dent.threat import ThreatModel

N = 100
THREAT = ThreatModel("linf", "8/255")
CUSTOM = AttackSpec(
    name="mine", attack=None, kind="mine:Attack", settings={}, versions={}, protocol="frozen"
)


def specs(*names: str) -> tuple[AttackSpec, ...]:
    return tuple(CUSTOM if name == "mine" else attack_spec(make(name), THREAT) for name in names)


def unit(name: str, broken: int, backwards: int, after: dict[str, int] | None) -> UnitRecord:
    return UnitRecord(
        kind="attack",
        defense="d",
        attack=name,
        batch=0,
        seed=0,
        served=(1,) * broken + (0,) * (N - broken),
        trace=Trace(rows=0, entropy=None, sigma=None, status={}),
        claimed=(True,) * broken + (False,) * (N - broken),
        claimed_after=after,
        gradients=(backwards,) * N,
        zero_gradients=(0,) * N,
        backwards=backwards,
        timing=UnitTiming(total=0, attack=0, serve=0, static=None),
    )


def comparison(*attacks: tuple[str, int, int, dict[str, int] | None]) -> GradientComparison:
    """Return the comparison for a defense of which each attack broke the first so many members.

    Args:
        attacks: For each attack: its name, the members that it broke, its gradients, and the
            members that were broken after each of its parts.
    """
    spec = EvaluationSpec.model_construct(attacks=specs(*(name for name, *_ in attacks)))
    submissions, records = {"natural": {0: Piece((True,) * N, (), 0)}}, {}
    for name, broken, backwards, after in attacks:
        rights = (False,) * broken + (True,) * (N - broken)
        submissions[f"attack/{name}"] = {0: Piece(rights, (), 0)}
        records[f"attack/{name}"] = [unit(name, broken, backwards, after)]
    return compare_gradients(Scores(submissions, records, None, (0,)), spec, by_sample=True)


APGD = ("apgd-ce", 0, 20, None)
SQUARE = ("square", 40, 0, None)
STANDARD = ("standard", 40, 40, {"apgd-ce": 0, "apgd-t": 0, "fab-t": 0, "square": 40})


@pytest.mark.parametrize("mixed", [STANDARD, ("plus", 40, 40, None), ("mine", 40, 1, None)])
def test_sets_and_custom_attacks_do_not_hide_that_square_breaks_more(
    mixed: tuple[str, int, int, dict[str, int] | None],
) -> None:
    found = comparison(APGD, SQUARE, mixed)
    assert found.black_box == 40
    evidence = Evidence(ran=(), symptoms=found, drawn=False, large_steps=True)
    for name in ("black-box beats white-box", "zero gradient", "not logits"):
        raised = Diagnostic(name=name, state="raised", value=1, threshold=0, sentence="")
        (gate,) = gates_of([raised], evidence)
        assert gate.open


def test_square_in_a_set_counts_as_a_black_box_attack() -> None:
    assert comparison(APGD, STANDARD).black_box == 40
    by_gradient = {"apgd-ce": 38, "apgd-t": 38, "fab-t": 38, "square": 40}
    assert comparison(APGD, ("standard", 40, 40, by_gradient)).black_box == 2
    assert comparison(("apgd-ce", 39, 20, None), STANDARD).black_box == 1
    assert comparison(("apgd-ce", 50, 20, None), SQUARE, STANDARD).black_box == -10


def test_a_run_without_white_box_attacks_takes_the_gradients_of_a_set() -> None:
    assert comparison(STANDARD).without_gradient == 0
    assert comparison(STANDARD, SQUARE).black_box == 0
    assert comparison(("mine", 0, 1, None), SQUARE).black_box == 40


def test_sets_and_custom_attacks_are_neither_white_box_nor_black_box() -> None:
    standard, custom = specs("standard", "mine")
    assert (kind_of_attack(standard), kind_of_attack(custom)) == ("other", None)
    attacks = specs("apgd-ce", "standard", "mine")
    assert kinds_of_attacks(attacks, {"apgd-ce"})["mine"] == "other"


def test_they_count_as_white_box_if_no_other_attack_by_the_gradient_ran() -> None:
    attacks = specs("apgd-ce", "standard", "square")
    assert kinds_of_attacks(attacks, {"apgd-ce", "standard"})["standard"] == "other"
    assert kinds_of_attacks(attacks, {"standard", "square"})["standard"] == "white-box"


def summary(name: str, broken: int, after: dict[str, int], *, black: bool = False) -> AttackSummary:
    return AttackSummary.model_construct(
        kind="attack",
        attack=name,
        served=Count.of(N - broken, N),
        claimed=None,
        after={part: Count.of(N - count, N) for part, count in after.items()},
        black_box=black,
        batches=1,
        notes=(),
        non_finite=0,
        non_finite_in_attack=0,
    )


def test_the_diagnostic_sees_square_in_a_set_beside_the_white_box_attacks() -> None:
    attacks = [
        summary("apgd-ce", 0, {"apgd-ce": 0}),
        summary("standard", 40, {"fab-t": 0, "square": 40}),
    ]
    kinds = kinds_of_attacks(specs("apgd-ce", "standard"), {"apgd-ce", "standard"})
    assert value("black-box beats white-box", attacks, kinds) == 40


def test_the_diagnostic_compares_a_custom_attack_that_only_queries() -> None:
    attacks = [summary("apgd-ce", 0, {}), summary("mine", 40, {}, black=True)]
    kinds = kinds_of_attacks(specs("apgd-ce", "mine"), {"apgd-ce", "mine"})
    assert value("black-box beats white-box", attacks, kinds) == 40


def value(name: str, attacks: list[AttackSummary], kinds: dict[str, AttackKind]) -> float | None:
    independent = Dependence(declared=False, measured=False)
    diagnostics = of_defense(
        "d",
        None,
        independent,
        attacks,
        0,
        has_static=False,
        has_exact_attack=False,
        kinds=kinds,
    )
    return next(each.value for each in diagnostics if each.name == name)
