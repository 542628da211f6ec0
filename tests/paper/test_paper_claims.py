"""Test how claims of the paper are judged by confidence intervals."""

import random
from dataclasses import replace
from math import comb
from statistics import mean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dent.errors import ConfigError
from dent.evaluation.results.intervals import of_median, tango, wilson
from dent.evaluation.results.worst_case import MIN_CLUSTERS
from dent.paper.claims import compare, judge
from dent.paper.figures import measured
from dent.paper.load import read_spec
from dent.paper.measure import MeasuredCell, of_accuracy, of_numbers
from dent.paper.results import Judgement
from dent.paper.rules import rule
from dent.paper.spec import Claim, Table
from tests.paper.conftest import TABLE

CELLS = ("small/dent", "small/static")


def accuracy(right: list[bool], *, per_batch: int = 4, shared: bool = False) -> MeasuredCell:
    where = {at: at // per_batch for at in range(len(right))}
    return of_accuracy(dict(enumerate(right)), where, shared=shared, flags=(), partial=False)


def some(count: int, total: int = 100) -> list[bool]:
    return [at < count for at in range(total)]


UNPRINTED = {
    **TABLE,
    "rows": [{**row, "published": [""] * len(row["published"])} for row in TABLE["rows"]],
}
"""The table without published figures: its claims state a direction, but no size."""


def ruled(
    first: MeasuredCell,
    second: MeasuredCell,
    kind: str = "higher",
    printed: dict[str, Any] = TABLE,
    **fields: float,
) -> Judgement:
    table = read_spec(Table, "tiny", printed)
    claim = Claim.model_validate(
        {"id": "c", "says": "It is so.", "kind": kind, "pairs": [CELLS], **fields}
    )
    return judge(table, claim, CELLS, {CELLS[0]: first, CELLS[1]: second}, "%")


@pytest.mark.parametrize(
    ("dent", "static", "kind", "fields", "ruling"),
    [
        # Published: 40.0 against 10.0, a difference of 30 points. Half of it, 15, must be possible.
        (60, 30, "higher", {}, "reproduced"),
        (40, 30, "higher", {}, "reproduced"),  # interval up to 17: half is possible
        (34, 30, "higher", {}, "not reproduced"),  # interval below half
        (30, 30, "higher", {}, "not reproduced"),
        (30, 60, "higher", {}, "not reproduced"),
        (32, 30, "at-least", {"bound": 4.0}, "cannot be told"),
        (60, 30, "at-least", {"bound": 20.0}, "reproduced"),
        (60, 30, "at-least", {"bound": 30.0}, "cannot be told"),
        (40, 30, "at-least", {"bound": 20.0}, "not reproduced"),
        (30, 32, "higher", {"printed": UNPRINTED}, "cannot be told"),
        (30, 40, "higher", {"printed": UNPRINTED}, "not reproduced"),
        (40, 30, "higher", {"printed": UNPRINTED}, "reproduced"),  # no published size
        (31, 30, "about", {"within": 10.0}, "reproduced"),
        (31, 30, "about", {"within": 2.0}, "cannot be told"),
        (60, 30, "about", {"within": 2.0}, "not reproduced"),
        (30, 60, "about", {"within": 2.0}, "not reproduced"),
        (60, 30, "not-lower", {"within": 2.0}, "reproduced"),
        (29, 30, "not-lower", {"within": 2.0}, "cannot be told"),
        (20, 30, "not-lower", {"within": 2.0}, "not reproduced"),
    ],
)
def test_ruling_of_a_pair_follows_from_its_interval(
    dent: int, static: int, kind: str, fields: dict[str, Any], ruling: str
) -> None:
    found = ruled(accuracy(some(dent)), accuracy(some(static)), kind, **fields)
    gained, lost = max(dent - static, 0), max(static - dent, 0)
    low, high = tango(gained, lost, 100)
    assert found.interval == pytest.approx((100 * low, 100 * high))
    assert found.measured == pytest.approx(dent - static)
    assert found.ruling == ruling, found


UNSETTLED = (
    "Claimed: +17.0. The interval lies above 0 and reaches half of that (8.5): reproduced in "
    "direction; the size is not settled."
)
SIZED = "lies between half of that (8.5) and twice that (34.0): reproduced in direction and size."


@pytest.mark.parametrize(
    ("kind", "fields", "bounds", "ruling", "said"),
    [
        # Published +17: half is 8.5.
        ("higher", {}, (9.0, 20.0), "reproduced", SIZED),
        ("higher", {}, (9.0, 34.1), "reproduced", "the size is not settled."),
        ("higher", {}, (17.1, 34.0), "reproduced", f"{SIZED} The paper's figure lies below it."),
        ("higher", {}, (34.1, 40.0), "reproduced", "the size is larger than the paper's."),
        (
            "higher",
            {},
            (5.0, 16.9),
            "reproduced",
            UNSETTLED,
        ),
        ("higher", {}, (1.0, 8.0), "not reproduced", "lies above 0, but below half of that (8.5)"),
        ("higher", {}, (-1.0, 8.0), "not reproduced", "contains 0 and lies below half of that"),
        ("higher", {}, (-3.0, 0.0), "not reproduced", "The interval does not reach above 0."),
        ("higher", {}, (-1.0, 9.0), "cannot be told", "contains 0 and reaches half of that (8.5)."),
        (
            "higher",
            {"published": 2.9},
            (4.1, 18.6),
            "reproduced",
            "the size is not settled. The paper's figure lies below it.",
        ),
        (
            "higher",
            {"published": 22.8},
            (6.1, 21.2),
            "reproduced",
            "the size is not settled. The paper's figure lies above it.",
        ),
        (
            "at-least",
            {"bound": 14.0},
            (0.1, 7.1),
            "not reproduced",
            "Claimed: at least +14.0. The interval lies below that.",
        ),
        ("at-least", {"bound": 14.0}, (6.0, 18.0), "cannot be told", "contains that."),
        ("at-least", {"bound": 14.0}, (14.0, 18.0), "reproduced", "does not reach below that."),
        (
            "at-least",
            {"ratio": 0.9},
            (91.0, 98.0),
            "reproduced",
            "Claimed: at least 90% of the second cell.",
        ),
        ("higher", {"published": None}, (0.1, 9.0), "reproduced", "Claimed: above 0. The interval"),
        ("higher", {"published": None}, (-1.0, 9.0), "cannot be told", "The interval contains 0."),
        (
            "about",
            {"within": 2.0},
            (-2.0, 2.0),
            "reproduced",
            "The interval lies inside that range.",
        ),
        (
            "about",
            {"within": 2.0},
            (-2.0, 2.1),
            "cannot be told",
            "lies partly outside that range.",
        ),
        ("about", {"within": 2.0}, (2.1, 3.0), "not reproduced", "lies outside that range."),
        ("not-lower", {"within": 2.0}, (-2.0, 1.0), "reproduced", "does not reach below −2."),
        ("not-lower", {"within": 2.0}, (-3.0, 1.0), "cannot be told", "contains −2."),
        ("not-lower", {"within": 2.0}, (-4.0, -3.0), "not reproduced", "lies below −2."),
    ],
)
def test_sentence_of_a_ruling_states_what_was_checked(
    kind: str, fields: dict[str, Any], bounds: tuple[float, float], ruling: str, said: str
) -> None:
    limits = {name: value for name, value in fields.items() if name != "published"}
    claim = Claim.model_validate(
        {"id": "c", "says": "So.", "kind": kind, "pairs": [CELLS], **limits}
    )
    published = fields.get("published", 17.0)
    found, sentence = rule(claim, published, bounds, "%", few=False)
    assert found == ruling
    assert said in sentence


def test_unfinished_cells_are_not_judged() -> None:
    half = replace(accuracy(some(90)), partial=True)
    for first, second in ((half, accuracy(some(10))), (accuracy(some(90)), half)):
        found = ruled(first, second)
        assert (found.ruling, found.sentence) == (
            "not finished",
            "Not finished: batches are missing.",
        )
    assert ruled(accuracy(some(90)), accuracy(some(10))).ruling == "reproduced"


def test_more_than_30_percent_is_not_reproduced_by_a_gain_of_30_percent() -> None:
    """57 of 128 against 74 of 128: the interval of the ratio contains 130%."""
    found = ruled(accuracy(some(74, 128)), accuracy(some(57, 128)), "at-least", ratio=1.3)
    assert (found.ruling, found.unit) == ("cannot be told", "% of the second")
    assert found.published == 400  # 40.0 against 10.0
    assert found.measured == pytest.approx(100 * 74 / 57)
    assert found.interval is not None
    low, high = found.interval
    difference = tango(17, 0, 128)
    assert low <= 100 * (1 + difference[0] / (57 / 128))
    assert high >= 100 * (1 + difference[1] / (57 / 128))
    assert measured(found) == "129.8%"
    assert ruled(
        accuracy(some(100, 128)), accuracy(some(57, 128)), "at-least", ratio=1.3
    ).ruling == ("reproduced")
    assert ruled(
        accuracy(some(60, 128)), accuracy(some(57, 128)), "at-least", ratio=1.3
    ).ruling == ("not reproduced")


def test_interval_of_a_ratio_accounts_for_the_error_of_both_accuracies() -> None:
    """By hand: the delta method for a ratio of two paired proportions."""
    first, second = some(74, 128), [at % 2 == 0 for at in range(128)]
    value = 74 / 64
    residuals = [a - value * b for a, b in zip(first, second, strict=True)]
    reach = 1.9788 * stdev(residuals) / 128**0.5 / 0.5  # t at 127 degrees
    found = compare(accuracy(first), accuracy(second), as_ratio=True)
    assert found.interval is not None
    assert found.value == pytest.approx(100 * value)
    assert found.interval[1] == pytest.approx(100 * (value + reach), abs=0.01)
    dependent = compare(accuracy(first, shared=True), accuracy(second), as_ratio=True)
    assert dependent.interval is not None
    assert dependent.interval[0] <= found.interval[0]
    assert dependent.interval[1] >= found.interval[1]


def test_a_ratio_to_an_accuracy_of_0_cannot_be_told() -> None:
    assert ruled(accuracy(some(60)), accuracy(some(0)), "at-least", ratio=1.3).ruling == (
        "cannot be told"
    )


@pytest.mark.parametrize(
    "fields", [{}, {"within": 1.0}, {"bound": 1.0, "ratio": 1.3}, {"ratio": 0.0}]
)
def test_claim_of_a_size_needs_exactly_one_bound(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Claim.model_validate(
            {"id": "c", "says": "So.", "kind": "at-least", "pairs": [CELLS], **fields}
        )


def test_a_ratio_is_claimed_of_accuracies_only() -> None:
    claims = [{"id": "c", "says": "So.", "kind": "at-least", "ratio": 1.3, "pairs": [CELLS]}]
    columns = [{**column, "measure": "relative-time"} for column in TABLE["columns"]]
    with pytest.raises(ConfigError, match="ratio of no accuracies"):
        read_spec(Table, "tiny", {**TABLE, "claims": claims, "columns": columns})


def test_too_few_dependent_batches_for_the_bootstrap_cannot_be_told() -> None:
    first, second = some(90), some(10)
    for per_batch, ruling in ((10, "reproduced"), (20, "cannot be told")):
        dependent = accuracy(first, per_batch=per_batch, shared=True)
        found = ruled(dependent, accuracy(second, per_batch=1))
        assert found.ruling == ruling
        assert found.measured == 80
    assert "needs at least 8 batches" in found.sentence
    assert ruled(accuracy(first, per_batch=100), accuracy(second)).ruling == "reproduced"


def test_interval_is_wider_if_members_of_a_batch_are_dependent() -> None:
    draws = random.Random(0)  # noqa: S311 - no secret
    whole = [draws.random() < 0.5 for _ in range(20)]
    first = [luck for luck in whole for _ in range(10)]
    second = [at % 2 == 0 for at in range(200)]
    apart = compare(accuracy(first, per_batch=10), accuracy(second, per_batch=10))
    shared = compare(accuracy(first, per_batch=10, shared=True), accuracy(second, per_batch=10))
    assert apart.interval is not None
    assert shared.interval is not None
    assert shared.interval[0] < apart.interval[0]
    assert shared.interval[1] > apart.interval[1]
    assert "bootstrap over batches" in shared.method


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 9),
    st.booleans(),
)
def test_swapping_the_cells_negates_the_difference(
    pairs: list[tuple[bool, bool]], per_batch: int, shared: bool
) -> None:
    one, other = (
        accuracy([pair[at] for pair in pairs], per_batch=per_batch, shared=shared) for at in (0, 1)
    )
    there, back = compare(one, other), compare(other, one)
    assert there.value == pytest.approx(-back.value)
    assert there.interval is not None
    assert back.interval is not None
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=1e-6)
    assert there.interval[0] - 1e-9 <= there.value <= there.interval[1] + 1e-9
    assert there.few == back.few


def test_cells_are_compared_only_on_their_common_samples() -> None:
    first = accuracy([True] * 8 + [False] * 8)
    second = accuracy([False] * 8)
    assert compare(first, second).value == 100
    nothing = MeasuredCell(0.0, None, "", {99: True}, {99: 0}, False, (), (), False)
    apart = compare(first, nothing)
    assert (apart.value, apart.interval) == (None, None)


def test_cells_that_are_not_measured_are_not_judged() -> None:
    table = read_spec(Table, "tiny", TABLE)
    claim = table.claims[0]
    found = judge(table, claim, CELLS, {CELLS[0]: accuracy(some(50))}, "%")
    assert (found.ruling, found.measured, found.interval) == ("not measured", None, None)
    assert found.published == 30


@pytest.mark.parametrize(
    ("kind", "fields", "interval", "ruling"),
    [
        ("at-most", {"bound": 10.0}, (2.0, 9.0), "reproduced"),
        ("at-most", {"bound": 10.0}, (2.0, 11.0), "cannot be told"),
        ("at-most", {"bound": 10.0}, (10.5, 40.0), "not reproduced"),
        # Published: 10.0.
        ("factor", {"factor": 2.0}, (5.0, 20.0), "reproduced"),
        ("factor", {"factor": 2.0}, (4.0, 20.0), "cannot be told"),
        ("factor", {"factor": 2.0}, (21.0, 30.0), "not reproduced"),
        ("factor", {"factor": 2.0}, (1.0, 4.0), "not reproduced"),
        ("factor", {"factor": 2.0}, None, "cannot be told"),
    ],
)
def test_ruling_of_a_single_cell_follows_from_its_interval(
    kind: str, fields: dict[str, float], interval: tuple[float, float] | None, ruling: str
) -> None:
    claim = Claim.model_validate(
        {"id": "c", "says": "So.", "kind": kind, "cells": ["small/static"], **fields}
    )
    cell = MeasuredCell(10.0, interval, "", {}, {}, False, (10.0,), (), False)
    table = read_spec(Table, "tiny", TABLE)
    found = judge(table, claim, ("small/static",), {"small/static": cell}, "×")
    assert (found.ruling, found.published) == (ruling, 10.0)


def test_a_single_accuracy_of_few_dependent_batches_cannot_be_told() -> None:
    claim = Claim.model_validate(
        {"id": "c", "says": "So.", "kind": "at-most", "cells": ["small/dent"], "bound": 10.0}
    )
    table = read_spec(Table, "tiny", TABLE)

    def judged(batches: int, *, shared: bool) -> str:
        cell = accuracy([False] * 64, per_batch=64 // batches, shared=shared)
        return judge(table, claim, ("small/dent",), {"small/dent": cell}, "%").ruling

    assert judged(4, shared=True) == "cannot be told"
    assert judged(8, shared=True) == judged(4, shared=False) == "reproduced"


def test_the_interval_of_a_single_accuracy_is_wider_if_its_batches_differ() -> None:
    """6 of 128 are correct, all in one of 8 batches: Wilson's interval ends below 10%."""
    claim = Claim.model_validate(
        {"id": "c", "says": "So.", "kind": "at-most", "cells": ["small/dent"], "bound": 10.0}
    )
    table = read_spec(Table, "tiny", TABLE)

    def judged(*, shared: bool) -> Judgement:
        cell = accuracy(some(6, 128), per_batch=16, shared=shared)
        return judge(table, claim, ("small/dent",), {"small/dent": cell}, "%")

    apart, together = judged(shared=False), judged(shared=True)
    assert (apart.ruling, apart.method) == ("reproduced", "Wilson")
    assert apart.interval == pytest.approx([100 * end for end in wilson(6, 128)])
    assert (together.ruling, together.measured) == ("cannot be told", apart.measured)
    assert "bootstrap over batches" in together.method
    assert together.interval is not None
    # Student's t interval of the shares of the batches, by hand: 2.3646 is t at 7 degrees.
    shares = [6 / 16] + [0.0] * 7
    reach = 2.3646 * stdev(shares) / 8**0.5
    assert together.interval == pytest.approx((0, 100 * (mean(shares) + reach)), abs=0.01)


@given(
    st.lists(st.booleans(), min_size=1, max_size=60),
    st.integers(1, 9),
)
def test_interval_of_dependent_samples_contains_the_interval_of_independent_ones(
    right: list[bool], per_batch: int
) -> None:
    apart, together = (accuracy(right, per_batch=per_batch, shared=s) for s in (False, True))
    assert apart.interval is not None
    assert together.interval is not None
    assert 0 <= together.interval[0] <= apart.interval[0]
    assert apart.interval[1] <= together.interval[1] <= 100
    if len(set(together.batch.values())) < MIN_CLUSTERS:
        assert together.interval == apart.interval


def test_per_batch_numbers_are_paired_by_batch() -> None:
    before = of_numbers([0.5] * 6, (), False)
    after = of_numbers([0.4, 0.3, 0.45, 0.2, 0.35, 0.49], (), False)
    few = of_numbers([0.1] * 5, (), False)
    assert before is not None
    assert after is not None
    assert few is not None
    found = ruled(before, after, printed=UNPRINTED)
    assert found.interval == pytest.approx((0.01, 0.3))
    assert found.ruling == "reproduced"
    assert ruled(few, after, printed=UNPRINTED).ruling == "cannot be told"
    assert of_numbers([], (), False) is None


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 8, 9, 12, 30, 101])
def test_interval_of_the_median_is_the_narrowest_with_95_percent_coverage(count: int) -> None:
    def outside(below: int) -> float:
        """Probability that the median is below an interval without the `below` smallest values."""
        return sum(comb(count, at) for at in range(below + 1)) / 2**count

    values = list(range(count))
    values.reverse()
    found = of_median([float(value) for value in values])
    if count < 6:
        assert found is None
        return
    assert found is not None
    below = int(found[0])
    assert found == (below, count - 1 - below)
    assert 2 * outside(below) <= 0.05 < 2 * outside(below + 1)
