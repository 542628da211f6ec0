"""Randomized defenses: the risk of submitting again."""

from itertools import combinations

import pytest
import torch

from dent.evaluation.results.result import Count, Repeated
from dent.evaluation.results.worst_case import resubmission_risk
from dent.report import wording


def test_the_resubmission_risk_is_the_mean_over_all_choices_of_draws() -> None:
    draws = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) < 0.7  # member, draw
    found = resubmission_risk(draws.double().mean(1).tolist(), 5)
    for n, risk in enumerate(found, start=1):
        wrong = [
            (~draws[:, list(some)]).any(1).double().mean() for some in combinations(range(5), n)
        ]
        assert risk == pytest.approx(float(torch.stack(wrong).mean()))
    assert list(found) == sorted(found)
    assert resubmission_risk([1.0, 1.0], 3) == (0.0, 0.0, 0.0)
    assert resubmission_risk([0.0, 1.0], 2) == (0.5, 0.5)


def test_it_is_said_in_one_line() -> None:
    repeated = Repeated(
        draws=5,
        natural=1.0,
        robust=0.6,
        natural_always=Count.of(9, 10),
        robust_always=Count.of(4, 10),
        risk=(0.4, 0.45, 0.5, 0.55, 0.6),
        natural_risk=(0.0, 0.0, 0.0, 0.05, 0.1),
    )
    (sentence,) = wording.resubmission(repeated)
    assert "40.0% in 1, 45.0% in 2, 60.0% in 5. Of natural images 10.0% in 5." in sentence
    assert wording.resubmission(None) == ()
    older = repeated.model_copy(update={"risk": (), "natural_risk": ()})
    assert wording.resubmission(older) == ()
