"""Tells of attacks that do little, beside attacks that left out the members broken before."""

import pytest

from dent.evaluation.records.plan import Batch
from dent.evaluation.records.schema import Trace, UnitRecord, UnitTiming
from dent.evaluation.records.spec import AttackSpec, DefenseSpec
from dent.evaluation.results.attack_effort import _broken, effort_diagnostics
from dent.evaluation.results.scoring import Scores, piece_of
from dent.evaluation.results.summary import _claimed_after

N = 20
DEFENSE = DefenseSpec(name="d", kind="k", config={}, weights=None, batch_dependent=False)
BATCH = Batch(index=0, positions=tuple(range(N)), ids=tuple(range(N)), labels=(0,) * N, attacked=N)


def unit(kind: str, wrong: int, loss: float, **more: object) -> UnitRecord:
    """Return a unit in which the last members are wrong, so many of them."""
    values: dict[str, object] = {
        "kind": kind,
        "defense": "d",
        "attack": None if kind == "natural" else "mine",
        "batch": 0,
        "seed": 0,
        "served": (0,) * (N - wrong) + (1,) * wrong,
        "trace": Trace(rows=0, entropy=None, sigma=None, status={}),
        "claimed": None if kind == "natural" else last(wrong),
        "loss": loss,
        "timing": UnitTiming(total=0, attack=0, serve=0, static=None),
    }
    return UnitRecord.model_validate(values | more)


def last(count: int) -> tuple[bool, ...]:
    return (False,) * (N - count) + (True,) * count


def raised(natural: UnitRecord, attack: UnitRecord, registered: str = "pgd") -> set[str]:
    records = {"natural": [natural], "attack/mine": [attack]}
    pieces = {name: {0: piece_of(BATCH, each)} for name, (each,) in records.items()}
    spec = AttackSpec(
        name="mine", attack=registered, kind="k", settings={}, versions={}, protocol="frozen"
    )
    found = effort_diagnostics(DEFENSE, Scores(pieces, records, None, (0,)), [spec])
    return {each.name for each in found if each.raised}


def test_an_attack_that_only_corrects_predictions_gained_nothing() -> None:
    natural = unit("natural", 5, 1.0)
    easier = unit("attack", 0, 0.2, used=(1.0,) * N, queries=9)
    assert raised(natural, easier) == {"attack gained nothing"}
    harder = unit("attack", 6, 0.2, used=(1.0,) * N, queries=9)
    assert raised(natural, harder) == set()


@pytest.mark.parametrize("wrong", [0, 3])
def test_images_of_earlier_attacks_do_not_hide_an_attack_that_moved_nothing(wrong: int) -> None:
    natural = unit("natural", wrong, 1.0)
    kept = (0.0,) * 12 + (1.0,) * 8
    stub = unit("attack", 8, 2.0, used=kept, carried=last(8), queries=9)
    assert raised(natural, stub) == {"attack moved nothing"}
    moved = (0.5,) * 12 + (1.0,) * 8
    assert raised(natural, unit("attack", 8, 2.0, used=moved, carried=last(8))) == set()


def test_autoattack_may_return_natural_images_if_easier_members_were_left_out() -> None:
    natural = unit("natural", 0, 1.0)
    kept = (0.0,) * 12 + (1.0,) * 8
    idle = unit("attack", 8, 2.0, used=kept, carried=last(8), queries=9)
    assert raised(natural, idle, "fab-t") == set()
    unmoved = unit("attack", 0, 2.0, used=(0.0,) * N, queries=9)
    assert raised(natural, unmoved, "fab-t") == {"attack moved nothing"}


def test_members_that_an_attack_itself_broke_count_beside_those_it_left_out() -> None:
    natural = unit("natural", 5, 1.0)
    scores = {"carried": last(5), "used": (1.0,) * N}
    records = {"natural": [natural], "attack/mine": [unit("attack", 7, 1.0, **scores)]}
    pieces = {name: {0: piece_of(BATCH, each)} for name, (each,) in records.items()}
    assert _broken(Scores(pieces, records, None, (0,)), "attack/mine") == 2


def test_a_batch_whose_members_were_all_broken_before_counts_for_every_part_of_a_set() -> None:
    after = {"apgd-ce": 12, "square": 12}
    attacked = unit("attack", 12, 2.0, claimed_after=after)
    idle = unit("attack", N, 2.0, claimed_after={}, carried=last(N))
    left = _claimed_after([attacked, idle], 2 * N)
    assert {part: count.correct for part, count in left.items()} == {"apgd-ce": 8, "square": 8}
