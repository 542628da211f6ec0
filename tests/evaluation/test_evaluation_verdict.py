"""The worst case and the paired difference, against brute force."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dent.evaluation import Settings, evaluate
from dent.evaluation.records.schema import Comparison, ProbeRecord
from dent.evaluation.records.spec import DefenseSpec
from dent.evaluation.results.intervals import of_cluster_means, tango
from dent.evaluation.results.result import Dependence
from dent.evaluation.results.scoring import Piece, Scores, worst_of_batch
from dent.evaluation.results.worst_case import (
    MIN_CLUSTERS,
    dependence_of,
    difference_to,
    worst_of,
)
from tests.evaluation.subjects import Guess, Push, Sociable, make_model, make_subject

INDEPENDENT = Dependence(declared=False, measured=False)
DEPENDENT = Dependence(declared=True, measured=True)


def scores(*submissions: list[list[bool]], assembled: bool = False) -> Scores:
    """Return scores of submissions: each is a list of batches, each a list of correct members."""
    names = ["natural", "attack/a", "transfer/a", "attack/b"][: len(submissions)]
    if assembled:
        names[-1] = "assembled"
    by = {
        name: {at: Piece(tuple(rows), (), 0) for at, rows in enumerate(batches)}
        for name, batches in zip(names, submissions, strict=True)
    }
    return Scores(by, dict.fromkeys(names, ()), None, tuple(range(len(submissions[0]))))


tables = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5)).flatmap(
    lambda shape: st.lists(
        st.lists(
            st.lists(st.booleans(), min_size=shape[2], max_size=shape[2]),
            min_size=shape[1],
            max_size=shape[1],
        ),
        min_size=shape[0],
        max_size=shape[0],
    )
)


@given(tables)
@settings(max_examples=100, deadline=None)
def test_worst_case_equals_a_brute_force_count(table: list[list[list[bool]]]) -> None:
    given_scores = scores(*table)
    batches = range(len(table[0]))
    by_sample = worst_of(given_scores, INDEPENDENT)
    assert by_sample.unit == "sample"
    assert by_sample.served.correct == sum(
        all(submission[at][member] for submission in table)
        for at in batches
        for member in range(len(table[0][0]))
    )
    assert sum(by_sample.by.values()) == by_sample.served.total - by_sample.served.correct
    by_batch = worst_of(given_scores, DEPENDENT)
    assert by_batch.unit == "batch"
    assert by_batch.served.correct == sum(
        min(sum(submission[at]) for submission in table) for at in batches
    )
    assert sum(by_batch.by.values()) == len(table[0])
    assert by_sample.served.correct <= by_batch.served.correct


def test_per_sample_worst_case_needs_declared_and_uncontradicted_independence() -> None:
    table = scores([[True, False]], [[False, True]])
    for declared, measured, unit in (
        (False, False, "sample"),
        (False, None, "sample"),
        (False, True, "batch"),
        (True, False, "batch"),
        (True, None, "batch"),
    ):
        worst = worst_of(table, Dependence(declared=declared, measured=measured))
        assert (worst.unit, worst.served.correct) == (unit, 0 if unit == "sample" else 1)


def test_randomness_that_hides_a_dependence_does_not_make_members_independent() -> None:
    def dependence(*, declared: bool, moved: float | None) -> Dependence:
        other = None if moved is None else Comparison(members=4, changed=2, distance=moved)
        same = Comparison(members=4, changed=0, distance=0.0)
        drawn = Comparison(members=4, changed=2, distance=0.5)
        changes = {"repeated": drawn, "again": same, "alone": other, "strangers": other}
        probe = ProbeRecord.model_construct(permuted=other, **changes)
        defense = DefenseSpec.model_construct(name="it", batch_dependent=declared)
        return dependence_of(defense, Scores({}, {}, probe, ()))

    assert dependence(declared=False, moved=0.5).undetermined
    assert not dependence(declared=True, moved=0.5).undetermined
    assert not dependence(declared=False, moved=None).undetermined  # a batch of one
    hidden = Dependence(declared=False, measured=None, undetermined=True)
    ours, theirs = scores([[True] * 4] * 8), scores([[True] * 4] * 4 + [[False] * 4] * 4)
    found = difference_to(theirs, ours, hidden, seed=0)
    assert found.interval == difference_to(theirs, ours, DEPENDENT, seed=0).interval
    assert found.interval != difference_to(theirs, ours, INDEPENDENT, seed=0).interval
    assert worst_of(ours, hidden).unit == "sample"


def test_worst_case_names_the_first_submission_that_broke_each_sample() -> None:
    pieces = {
        "natural": Piece((True, False, True), (), 0),
        "attack/a": Piece((False, False, True), (), 0),
    }
    rights, by = worst_of_batch(pieces, by_sample=True)
    assert rights == (False, False, True)
    assert by == ["attack/a", "natural"]


def test_the_difference_is_paired_by_sample() -> None:
    static = scores([[True] * 6], [[True, True, False, False, False, True]])
    ours = scores([[True] * 6], [[True, False, True, True, False, True]])
    gain = difference_to(static, ours, INDEPENDENT, seed=0)
    assert (gain.only_defended, gain.only_static, gain.total) == (2, 1, 6)
    assert gain.value == pytest.approx(1 / 6)
    assert gain.interval == pytest.approx(tango(2, 1, 6))
    assert (gain.method, gain.static_unit) == ("tango", "sample")
    assert (gain.static.correct, gain.static.total) == (3, 6)


def test_static_model_gets_no_stronger_attacker_than_the_defense() -> None:
    # Each of two attacks breaks another half: 0 of 4 are correct per sample, 2 of 4 per batch.
    halves = [[[True] * 4], [[True, True, False, False]], [[False, False, True, True]]]
    static, ours = scores(*halves), scores(*halves)
    gain = difference_to(static, ours, DEPENDENT, seed=0)
    assert (gain.static_unit, gain.static.correct, gain.value) == ("batch", 2, 0.0)
    # With an assembled batch, both attackers may choose per sample.
    assembled = scores(*halves, [[False] * 4], assembled=True)
    gain = difference_to(static, assembled, DEPENDENT, seed=0)
    assert (gain.static_unit, gain.static.correct, gain.value) == ("sample", 0, 0.0)


def test_results_correlated_within_batches_widen_the_interval() -> None:
    count = 2 * MIN_CLUSTERS
    won = [[at % 2 == 0] * 20 for at in range(count)]
    lost = [[at % 2 == 1] * 20 for at in range(count)]
    static, ours = scores(lost, lost), scores(won, won)
    alone = difference_to(static, ours, INDEPENDENT, seed=0)
    shared = difference_to(static, ours, DEPENDENT, seed=0)
    assert alone.interval is not None
    assert shared.interval is not None
    assert shared.value == alone.value == 0.0
    assert shared.interval[1] - shared.interval[0] > 2 * (alone.interval[1] - alone.interval[0])
    assert "bootstrap over batches" in shared.method
    baseline = difference_to(static, ours, INDEPENDENT, seed=0, of_static=DEPENDENT)
    assert baseline.interval == shared.interval
    sums = [20 if at % 2 == 0 else -20 for at in range(count)]
    assert shared.interval == pytest.approx(of_cluster_means(sums, [20] * count))  # the widest
    few = difference_to(scores(lost[:3]), scores(won[:3]), DEPENDENT, seed=0)
    assert few.method == "tango"
    assert "3 batches are too few to draw anew" in few.assumes


def test_assembled_batches_are_submitted_for_a_batch_dependent_defense() -> None:
    # `Sociable` depends on the mean of the batch, so an assembled batch gets other logits.
    model = make_model()
    attacks = [Push(0.3, name="nudge"), Guess()]
    subject = make_subject({"sociable": Sociable(model)}, attacks, model=model)
    result = evaluate(subject, Settings(n=16, batch_size=8)).defenses["sociable"]
    assembled = next(summary for summary in result.attacks if summary.kind == "assembled")
    assert (assembled.batches, assembled.served.total) == (2, 16)
    assert result.worst.unit == "batch"
    assert result.worst.served.correct <= min(s.served.correct for s in result.attacks)
