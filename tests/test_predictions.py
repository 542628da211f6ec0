"""One rule for what counts as a prediction, wherever logits are read."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent.attacks.adaptive import Majority, Rung
from dent.attacks.losses import LOSSES, loss_named
from dent.config import DentConfig
from dent.defenses.dent import Dent
from dent.evaluation import evaluate
from dent.evaluation.probe.gradient_check import check_gradient
from dent.evaluation.records.plan import Batch
from dent.evaluation.submission.fresh import Origin
from dent.evaluation.submission.measures import mean_loss
from dent.evaluation.submission.submission import apart, submit
from dent.evaluation.verification.tolerance import is_tie
from dent.models import check_model
from dent.playground.watch import Look
from dent.serving.engine import NO_PREDICTION, Engine
from dent.support.predictions import bounded, is_prediction
from dent.support.straight_through import straight_through
from dent.threat import ThreatModel
from tests.attacks.attack_toys import Toy, linear, small_images
from tests.evaluation.subjects import SMALL, batch_of, make_model, make_subject

INF = torch.inf
ROWS = torch.tensor(
    [
        [1.0, 2.0, 3.0],
        [1.0, -INF, 3.0],
        [-INF, -INF, 0.0],
        [1.0, INF, 3.0],
        [-INF, -INF, -INF],
        [1.0, torch.nan, -INF],
    ]
)
PREDICTIONS = [True, True, True, False, False, False]


class Excluding(nn.Module):
    """A classifier that excludes one class."""

    def __init__(self, model: nn.Module, excluded: int) -> None:
        super().__init__()
        self.model = model
        self.excluded = excluded
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        excluded = torch.tensor([self.excluded], device=x.device)
        return logits.index_fill(1, excluded, -INF)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_rows_without_nan_and_with_a_finite_largest_logit_are_predictions(
    dtype: torch.dtype,
) -> None:
    assert is_prediction(ROWS.to(dtype)).tolist() == PREDICTIONS


def test_bounded_logits_keep_classes_probabilities_and_other_bits() -> None:
    bounds = bounded(ROWS)
    assert bounds[PREDICTIONS].isfinite().all()
    assert torch.equal(bounds.softmax(1)[PREDICTIONS], ROWS.softmax(1)[PREDICTIONS])
    finite = ROWS.isfinite()
    assert torch.equal(bounds[finite], ROWS[finite])
    ordinary = torch.randn(4, 10)
    assert bounded(ordinary) is ordinary


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e12, 1e37, 3e38])
def test_an_excluded_class_is_never_predicted_at_any_scale(scale: float) -> None:
    for rest in ([1.0, 1.0], [-1.0, -1.0], [0.5, 1.0], [-1.0, 1.0]):
        logits = torch.tensor([[-INF, *(scale * value for value in rest)]])
        bounds = bounded(logits)
        assert bounds.isfinite().all()
        assert bounds[0, 0] < bounds[0, 1:].min()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("label", [0, 1, 2, 3])
@pytest.mark.parametrize("target", [None, 1, 3])
def test_losses_and_gradients_of_rows_with_excluded_classes_are_finite(
    name: str, label: int, target: int | None
) -> None:
    leaf = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = bounded(leaf.index_fill(1, torch.tensor([1, 4]), -INF))
    targets = None if target is None else torch.full((6,), target)
    loss = loss_named(name)(logits, torch.full((6,), label), targets)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_natural_accuracy_counts_rows_that_exclude_a_class() -> None:
    model = Excluding(make_model(), 3)
    subject = make_subject({"dent": Dent(model, DentConfig(steps=1, lr=1e-3))}, model=model)
    x, y = batch_of(subject.dataset, range(20))
    correct = int((model(x).argmax(1) == y).sum())
    assert correct > 8
    results = evaluate(subject, SMALL).defenses
    assert results["static"].natural.correct == correct
    for result in results.values():
        assert result.natural.correct > 8
        assert result.attack("push").served.correct > 0
        assert "non-finite" not in [each.name for each in result.raised]


def test_submissions_predict_with_excluded_classes() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ROWS[: len(x)]

    predictions = submit(Fixed().eval(), torch.rand(6, 3, 4, 4), seed=0).predictions
    assert predictions == (2, 2, 2, None, None, None)


def test_distance_ignores_classes_that_both_answers_exclude() -> None:
    first = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    second = first + 0.1 * first.roll(1, dims=1)
    remaining = [0, 1, 2, 3, 4, 5, 6, 8]
    excluded = [each.index_fill(1, torch.tensor([7, 9]), -INF) for each in (first, second)]
    found = apart(*excluded, excluded[0])
    assert found is not None
    assert 0 < found < INF
    expected = apart(*(each[:, remaining] for each in (first, second)), first[:, remaining])
    assert expected is not None
    assert found == pytest.approx(expected, rel=0.5)
    assert apart(excluded[0], excluded[0]) == 0
    assert apart(excluded[0], first) is None
    assert apart(first, excluded[1]) is None
    only = torch.full((3, 4), -INF).index_fill(1, torch.tensor([2]), 1.0)
    assert apart(only, only) == 0


def test_recorded_loss_is_finite_where_the_label_is_excluded() -> None:
    answer: Any = submit(Excluding(linear(), 1), small_images(4), seed=0)
    members = (0, 1, 2, 3)
    batch = Batch(index=0, positions=members, ids=members, labels=(1, 1, 1, 1), attacked=4)
    loss = mean_loss([answer], [batch])
    assert loss is not None
    assert 1e3 < loss < 1e6


def test_near_ties_do_not_include_excluded_classes() -> None:
    row = torch.tensor([1.0, 1.0, -INF])
    assert is_tie(row, 0)
    assert not is_tie(row, 2)
    assert not is_tie(torch.full((3,), -INF), 0)


def test_stand_ins_and_votes_keep_predictions_that_exclude_classes() -> None:
    values = ROWS.clone()
    base = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    for below in (base, torch.where(ROWS.isneginf(), -INF, base)):
        result = straight_through(values, below)
        assert torch.equal(result[1:3], values[1:3])
        assert is_prediction(result).tolist() == PREDICTIONS
    x = small_images(3)
    defense = Toy(Excluding(linear(), 1))
    assert torch.equal(Rung("bpda").view(defense)(x).argmax(1), defense(x).argmax(1))
    votes = Majority(defense, 3)(x)
    assert is_prediction(votes).all()
    assert torch.equal(votes.argmax(1), defense(x).argmax(1))


def test_models_servers_and_the_playground_accept_excluded_classes() -> None:
    model = Excluding(make_model(), 3)
    check_model(model, 4, torch.rand(2, 3, 6, 6))
    images = torch.rand(4, 3, 6, 6)
    engine = Engine(Dent(model, DentConfig(steps=1, lr=1e-3)), images)
    assert NO_PREDICTION not in engine.run(images).statuses
    look = Look(0, torch.rand(3, 4, 4), torch.tensor([1.0, -INF, 3.0]), 2)
    assert (look.predicted, look.right) == (2, True)
    assert Look(0, torch.rand(3, 4, 4), torch.tensor([1.0, INF, 3.0]), 2).predicted is None


def test_gradient_check_passes_for_members_whose_label_is_excluded() -> None:
    model = Excluding(linear(), 1)
    x, y = small_images(4), torch.tensor([1, 0, 2, 1])
    record = check_gradient(Origin(model), x, y, ThreatModel("linf", 0.01), 0)
    for point in record.points:
        assert all(error is not None and error < 1e-3 for error in point.errors)
    assert math.isfinite(record.threshold or 0.0)
