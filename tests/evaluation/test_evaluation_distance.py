"""When two answers of a defense count as equal: only differences from rounding are ignored."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent.evaluation.probe.questions import Probe
from dent.evaluation.records.probe_answers import DISTANCE, changed
from dent.evaluation.submission.fresh import Origin
from dent.evaluation.submission.guard import Guard
from dent.evaluation.submission.submission import apart
from dent.evaluation.submission.submitter import WITH_GRADIENTS, Answers, Submitter
from dent.models.weights import weights_digest
from tests.evaluation.test_evaluation_suite_answers import X, Y
from tests.evaluation.test_evaluation_tricks import NET, other
from tests.evaluation.tricks import Trick


def logits(classes: int = 10, rows: int = 16) -> Tensor:
    """Return logits like a network's: the largest about 12, margins to the second class about 3."""
    draws = torch.Generator().manual_seed(0)
    drawn = 2 * torch.randn(rows, classes, generator=draws)
    return drawn + 4 * nn.functional.one_hot(drawn.argmax(1), classes)


def distance(first: Tensor, second: Tensor, *natural: Tensor) -> float:
    found = apart(first, second, *natural)
    assert found is not None
    return found


@pytest.mark.parametrize("decoys", [1, 5, 8], ids="{} decoys".format)
@pytest.mark.parametrize("size", [-1e5, -1e20], ids="{}".format)
def test_huge_logits_do_not_hide_a_changed_prediction(decoys: int, size: float) -> None:
    before = logits()
    after = before.clone()
    row = 3
    second = before[row].argsort()[-2]
    after[row, second] += 10
    lowest = before.argsort(1)[:, :decoys]
    hidden = [answer.scatter(1, lowest, size) for answer in (before, after)]
    assert distance(before, after) > 0.5
    assert distance(*hidden, hidden[0]) > 10 * DISTANCE


def test_very_confident_members_do_not_hide_changes_of_other_members() -> None:
    before = logits()
    before[:6] += 1e6 * nn.functional.one_hot(before[:6].argmax(1), 10)
    after = before.clone()
    after[9, before[9].argsort()[-2]] += 10
    assert distance(before, after) > 10 * DISTANCE


def test_a_very_confident_answer_to_natural_images_does_not_hide_a_change() -> None:
    before, natural = logits(), logits()
    sure = natural + 1e6 * nn.functional.one_hot(natural.argmax(1), 10)
    after = before.roll(1, dims=1)
    assert distance(before, after, sure) > 10 * DISTANCE
    assert distance(before, after, sure, natural) > 0.5


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_rounding_does_not_count_as_a_change(classes: int) -> None:
    # As large as an earlier limit, which was relative to the largest logit of the batch.
    before = logits(classes)
    noise = torch.rand(before.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    after = before + DISTANCE * before.abs().max() * noise
    assert distance(before, after) <= DISTANCE
    masked = torch.zeros(classes, dtype=torch.bool)
    masked[2:] = True
    # The rounding of a masked logit is relative to its size.
    hidden = [
        answer.masked_fill(masked, -1e9) + 64 * masked * k
        for k, answer in enumerate([before, after])
    ]
    assert distance(*hidden, before) <= DISTANCE


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_near_ties_are_compared_relative_to_the_margins_of_natural_images(classes: int) -> None:
    natural = logits(classes)
    top = natural.topk(2, dim=1)
    edge = natural.scatter(1, top.indices[:, 1:], top.values[:, :1] - 1e-6)
    turned = natural.scatter(1, top.indices[:, 1:], top.values[:, :1] + 1e-5)
    assert not edge.argmax(1).equal(turned.argmax(1))
    assert distance(edge, turned, natural) <= DISTANCE / 10
    assert distance(edge[:1], turned[:1], natural[:1]) <= DISTANCE


def test_distance_of_answers_with_nan_or_zero_logits() -> None:
    first = logits()
    lost = first.clone()
    lost[0, 0] = torch.nan
    assert apart(first, lost) is None
    assert apart(lost, lost) == 0
    assert apart(lost[:1], lost[:1]) == 0
    assert distance(first[1:], first[1:], lost[:1]) == 0
    assert distance(torch.zeros(4, 4), torch.zeros(4, 4)) == 0


class _Decoy(Trick):
    """Subtracts 1e5 from the lowest logit, which then has by far the largest magnitude."""

    def shown(self, z: Tensor, x: Tensor) -> Tensor:
        del x
        return z

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        z = self.shown(super().predict(x, adaptation), x)
        return z - 1e5 * nn.functional.one_hot(z.detach().argmin(1), z.shape[1]).to(z)


class _Lies(_Decoy):
    """Predicts the third class when gradients are enabled."""

    def shown(self, z: Tensor, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return z
        return z + 60 * nn.functional.one_hot(z.detach().argsort(1)[:, -3], z.shape[1]).to(z)


class _Counts(_Decoy):
    """Predicts the second class from the second query on."""

    calls = 0

    def shown(self, z: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 1:
            return z
        return z + 60 * nn.functional.one_hot(z.detach().argsort(1)[:, -2], z.shape[1]).to(z)


class _Mixes(_Decoy):
    """Subtracts a multiple of the mean logits of the batch."""

    def shown(self, z: Tensor, x: Tensor) -> Tensor:
        return z - 5 * z.mean(0)


def submitted(defense: nn.Module) -> Answers:
    model = other()
    guard = Guard(model, weights_digest(model))
    return Submitter("it", Origin(defense, model), X[:12], guard, 1, 12).submit(X[:12])


def test_changed_answers_are_detected_behind_a_huge_logit() -> None:
    assert submitted(_Lies(NET)).views.keys() == {WITH_GRADIENTS}
    assert submitted(_Counts(NET)).views
    honest = submitted(_Decoy(NET))
    assert not honest.views
    assert not honest.apart


def test_the_probe_detects_state_and_dependence_behind_a_huge_logit() -> None:
    def probe(defense: nn.Module) -> Probe:
        return Probe(Origin(defense), X[:12], Y[:12], (0.0, 1.0), 5)

    assert changed(probe(_Counts(NET)).again()[0])
    alone = probe(_Mixes(NET)).alone()
    assert alone is not None
    assert changed(alone)
    honest = probe(_Decoy(NET))
    alone, permuted = honest.alone(), honest.permuted()
    assert alone is not None
    assert permuted is not None
    assert not any(map(changed, (alone, permuted, honest.again()[0], honest.repeated())))


def test_a_huge_gradient_of_one_member_does_not_hide_changes_of_others() -> None:
    class Turns(Trick):
        calls = 0

        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            self.calls += 1
            z = super().predict(x, adaptation)
            scale = torch.ones(len(z), 1)
            scale[0] = 1e6
            z = z.detach() + scale * (z - z.detach())
            return z if self.calls == 1 else z - 2 * (z - z.detach()) * (scale < 2)

    comparison, turned = Probe(Origin(Turns(NET)), X[:12], Y[:12], (0.0, 1.0), 5).again()
    assert not changed(comparison)
    assert turned is not None
    assert turned > 1
