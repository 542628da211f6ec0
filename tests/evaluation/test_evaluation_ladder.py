"""Which rung of the gradient ladder broke the most, from the summaries of its attacks."""

from types import SimpleNamespace
from typing import Any

from dent.attacks.adaptive import NOT_AVAILABLE, RUNGS
from dent.evaluation.records.schema import Trace
from dent.evaluation.results.ladder import ladder_of
from dent.evaluation.results.result import AttackSummary, Count


def left(
    attack: str, correct: int, kind: Any = "attack", total: int = 20, note: str = ""
) -> AttackSummary:
    nothing = Count.of(0, 0)
    return AttackSummary(
        kind=kind,
        attack=attack,
        served=Count.of(correct, total),
        bystanders=nothing,
        claimed=None,
        claimed_but_served=0,
        served_wrong_unclaimed=0,
        after={},
        black_box=False,
        queries=1,
        backwards=1,
        non_finite=0,
        non_finite_in_attack=0,
        trace=Trace(rows=0, entropy=None, sigma=None, status={}),
        notes=(note,) if note else (),
        batches=1,
        timing={},
    )


def spec(**rungs: str | None) -> Any:
    """Return a specification with attacks by name, each on the given rung (None: on no rung)."""
    made = {name: "square" if rung is None else f"adaptive-{rung}" for name, rung in rungs.items()}
    attacks = [
        SimpleNamespace(name=name, attack=attack, settings={}) for name, attack in made.items()
    ]
    return SimpleNamespace(attacks=attacks)


LADDER = spec(square=None, stop="stop-gradient", eot="stop-gradient", exact="unrolled")


def test_the_rung_whose_best_attack_leaves_the_fewest_correct_wins() -> None:
    found = ladder_of(
        LADDER, [left("square", 1), left("stop", 12), left("eot", 9), left("exact", 8)]
    )
    assert found is not None
    assert [(each.rung, each.attack, each.served.correct) for each in found.rungs] == [
        ("stop-gradient", "eot", 9),
        ("unrolled", "exact", 8),
    ]
    assert found.won == "unrolled"
    assert found.sentence == (
        "On the gradient ladder, unrolled broke the most: 40.0% of 20 are left; "
        "stop-gradient 45.0%."
    )


def test_the_cheapest_of_equal_rungs_wins_and_the_sentence_says_so() -> None:
    found = ladder_of(LADDER, [left("exact", 8), left("stop", 8)])
    assert found is not None
    assert found.won == "stop-gradient"
    assert "stop-gradient broke as many as every other" in found.sentence


def test_images_of_the_static_model_are_on_the_rung_transfer() -> None:
    replayed = left("square", 5, kind="transfer")
    assembled = left("stop", 1, kind="assembled")
    found = ladder_of(LADDER, [left("exact", 8), replayed, assembled])
    assert found is not None
    assert [(each.rung, each.attack) for each in found.rungs] == [
        ("transfer", "square"),
        ("unrolled", "exact"),
    ]
    assert found.won == "transfer"


def test_attacks_that_did_not_run_are_not_on_the_ladder() -> None:
    missing = left("exact", 20, note=f"{NOT_AVAILABLE}unrolled: no differentiable adapt")
    assert ladder_of(LADDER, [left("stop", 12), missing]) is None
    assert ladder_of(LADDER, [left("stop", 12), left("exact", 0, total=0)]) is None
    nothing = [left(attack, 0, total=0) for attack in ("stop", "exact")]
    assert ladder_of(LADDER, nothing) is None


def test_rungs_that_attacked_different_batches_are_not_compared() -> None:
    partly = left("exact", 3, total=10)
    assert ladder_of(LADDER, [left("stop", 12), partly]) is None
    found = ladder_of(LADDER, [left("square", 9, kind="transfer"), left("stop", 12), partly])
    assert found is not None
    assert [rung.rung for rung in found.rungs] == ["transfer", "stop-gradient"]


def test_rungs_are_listed_in_the_order_of_the_ladder() -> None:
    names = {rung.replace("-", "_"): rung for rung in RUNGS}
    attacks = [left(name, 10 - at) for at, name in enumerate(reversed(names))]
    found = ladder_of(spec(**names), attacks)
    assert found is not None
    assert tuple(each.rung for each in found.rungs) == RUNGS
    assert found.won == RUNGS[0]


def test_an_attack_with_smooth_signs_is_on_no_rung() -> None:
    through = spec(stop="stop-gradient", exact="unrolled", smooth="unrolled")
    summaries = [left("stop", 12), left("exact", 8), left("smooth", 2)]
    plain = ladder_of(through, summaries)
    assert plain is not None
    assert plain.won == "unrolled"
    assert plain.rungs[-1].served.correct == 2
    through.attacks[-1].settings["smooth_signs"] = 0.3
    smoothed = ladder_of(through, summaries)
    assert smoothed is not None
    assert smoothed.rungs[-1].served.correct == 8


def test_there_is_no_ladder_if_a_rung_left_out_members_that_others_broke() -> None:
    exact = left("exact", 8)
    assert ladder_of(LADDER, [left("stop", 12), exact]) is not None
    assert ladder_of(LADDER, [left("stop", 12), exact.model_copy(update={"carried": 1})]) is None
    # Another attack on the rung does not count.
    weaker = left("eot", 13).model_copy(update={"carried": 1})
    assert ladder_of(LADDER, [left("stop", 12), weaker, exact]) is not None
