"""Tests of frozen AutoAttack: the images of the other members when it attacks some of them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dent.attacks import AttackError, Querier, Queries, make
from dent.attacks.autoattack.frozen import FrozenBatch, PartRun
from dent.threat import Norm, ThreatModel
from tests.attacks.attack_toys import SMALL, Company, Toy, linear, small_images


class Kept(Toy):
    """Records every queried batch and its predictions."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: list[Tensor] = []
        self.answers: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        self.asked.append(x.detach().clone())
        self.answers.append(logits.detach().argmax(dim=1))
        return logits


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "square", "standard"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fooled_members_stay_in_queries_with_the_images_that_fooled_them(
    name: str, norm: Norm
) -> None:
    model, x = linear(), small_images()
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    y[1] = (y[1] + 1) % 4
    threat = ThreatModel(norm, {"linf": 0.12, "l2": 0.6}[norm])
    kept = Kept(model)
    result = make(name, **SMALL[name])(kept, x, y, threat, seed=0)
    # Member 1 is naturally wrong, so its image is never changed.
    assert torch.equal(result.adversarial[1], x[1])
    assert all(torch.equal(asked[1], x[1]) for asked in kept.asked)
    fallen = result.fooled.clone()
    fallen[1] = False
    late = kept.asked[-1]
    assert fallen.any()
    assert torch.equal(late[fallen], result.adversarial[fallen])
    assert (late[fallen] != x[fallen]).flatten(1).any(dim=1).all()
    assert torch.equal(result.adversarial[~result.fooled], x[~result.fooled])


def test_square_keeps_the_image_of_a_fooled_member_while_others_continue() -> None:
    model, x = linear(), small_images(8)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    kept = Kept(model)
    make("square", iterations=40)(kept, x, y, ThreatModel("linf", 0.2), seed=1)
    first = {
        member: query
        for member in range(8)
        for query in reversed(range(len(kept.asked)))
        if kept.answers[query][member] != y[member]
    }
    assert len({*first.values()}) > 1  # they are fooled at different queries
    for member, query in first.items():
        for later in kept.asked[query:]:
            assert torch.equal(later[member], kept.asked[query][member])


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "square", "standard", "plus"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_querying_only_members_that_are_still_correct_gives_equal_results(
    name: str, norm: Norm
) -> None:
    model, x = linear(), small_images(8)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    y[2] = (y[2] + 1) % 4
    threat = ThreatModel(norm, {"linf": 0.08, "l2": 0.4}[norm])
    whole, alone = Kept(model), Kept(model)
    expected = make(name, **SMALL[name])(whole, x, y, threat, seed=0)
    found = make(name, **SMALL[name], ask="standing")(alone, x, y, threat, seed=0)
    assert torch.equal(found.fooled, expected.fooled)
    torch.testing.assert_close(found.adversarial, expected.adversarial, rtol=0, atol=1e-5)
    assert (found.queries, found.backwards) == (expected.queries, expected.backwards)
    assert all(len(asked) == 8 for asked in whole.asked)
    assert len(alone.asked[0]) == 8  # one query tells which members are correct
    assert all(len(asked) <= 7 for asked in alone.asked[1:])


class Blinded(Toy):
    """Returns NaN logits for bright images."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).mean(dim=1) > 0.55
        return torch.where(bright.unsqueeze(1), torch.nan, super().forward(x))


@pytest.mark.parametrize("ask", ["whole", "standing"])
def test_square_counts_nan_logits_as_fooled_beside_naturally_wrong_members(ask: str) -> None:
    x = torch.full((4, 3, 6, 6), 0.5)
    model = linear()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    y = torch.tensor([1, 2, 0, 0])  # the first two are naturally wrong, so they are not attacked
    found = make("square", iterations=30, ask=ask)(
        Blinded(model), x, y, ThreatModel("linf", 0.2), seed=0
    )
    assert found.fooled.all()
    assert found.non_finite > 0


def test_batch_dependent_defense_gets_whole_batches_despite_ask_standing() -> None:
    model, x = linear(), small_images(8)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    y[2] = (y[2] + 1) % 4
    kept = Kept(model)
    kept.batch_dependent = True
    make("apgd-ce", iterations=3, ask="standing")(kept, x, y, ThreatModel("linf", 0.08), seed=0)
    assert {len(asked) for asked in kept.asked} == {8}


class Guarded(Toy):
    """Misclassifies member 0 if it is bright and member 1 is not.

    It also misclassifies member 1 if that is very bright.
    """

    batch_dependent = True

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        light = x.flatten(1).mean(dim=1)
        wrong = torch.stack([(light[0] > 0.55) & (light[1] < 0.6), light[1] > 0.7]).float()
        return torch.stack([1 - wrong, wrong], dim=1)


def frozen(defense: Toy, x: Tensor, y: Tensor) -> FrozenBatch:
    threat = ThreatModel("linf", 0.5)
    return FrozenBatch(Querier(defense, x, y, threat, plan=lambda _: Queries(0, 0)))


def test_members_that_become_correct_again_are_attacked_again() -> None:
    x, y = torch.full((2, 3, 6, 6), 0.5), torch.zeros(2, dtype=torch.int64)
    batch = frozen(Guarded(linear()), x, y)
    attacked: list[list[int]] = []

    def run(light: dict[int, float]) -> PartRun:
        def attack(members: Tensor) -> tuple[Tensor, Tensor]:
            attacked.append(members.tolist())
            images = torch.stack([torch.full((3, 6, 6), light.get(int(m), 0.5)) for m in members])
            return images, torch.tensor([int(m) in light for m in members])

        return attack

    def runs() -> Iterator[PartRun]:
        yield run({0: 0.58})
        yield run({1: 0.8})  # this makes member 0 correct again
        yield run({})

    batch.attack(runs())
    assert attacked == [[0, 1], [1], [0]]
    assert batch.standing.tolist() == [True, False]
    worst = batch.target.worst
    assert worst is not None
    assert worst.fooled.sum() == 1


def test_query_with_fewer_rows_than_members_raises() -> None:
    x, y = small_images(), torch.zeros(5, dtype=torch.int64)
    batch = frozen(Company(linear()), x, y)
    with pytest.raises(AttackError, match="4 rows asked about, of 5 members"):
        batch(x[:4])
    assert batch.ask(x[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 4)


def test_gradient_reaches_the_queried_rows_of_a_frozen_batch() -> None:
    x, y = small_images(), torch.zeros(5, dtype=torch.int64)
    model = linear()
    batch = frozen(Toy(model), x, y)
    members = torch.tensor([1, 4])
    rows = x[members].clone().requires_grad_()
    alone = x[members].clone().requires_grad_()
    logits, expected = batch.ask(rows, members), model(alone)
    torch.testing.assert_close(logits, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((logits * weights).sum(), rows)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), alone)
    torch.testing.assert_close(gradient, wanted)
