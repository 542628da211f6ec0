"""What stands in the places that an attack does not ask about."""

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
    """Keeps every batch it was asked about, with the answers."""

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
def test_the_fallen_stand_in_the_batch_with_what_felled_them(name: str, norm: Norm) -> None:
    model, x = linear(), small_images()
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    y[1] = (y[1] + 1) % 4
    threat = ThreatModel(norm, {"linf": 0.12, "l2": 0.6}[norm])
    kept = Kept(model)
    result = make(name, **SMALL[name])(kept, x, y, threat, seed=0)
    assert torch.equal(result.adversarial[1], x[1])  # wrong by itself: natural, always
    assert all(torch.equal(asked[1], x[1]) for asked in kept.asked)
    fallen = result.fooled.clone()
    fallen[1] = False
    late = kept.asked[-1]
    assert fallen.any()
    assert torch.equal(late[fallen], result.adversarial[fallen])
    assert (late[fallen] != x[fallen]).flatten(1).any(dim=1).all()
    assert torch.equal(result.adversarial[~result.fooled], x[~result.fooled])


def test_square_leaves_a_member_where_it_fell_while_others_go_on() -> None:
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
    assert len({*first.values()}) > 1  # they fell at different times
    for member, query in first.items():
        for later in kept.asked[query:]:
            assert torch.equal(later[member], kept.asked[query][member])


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "square", "standard", "plus"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_asking_about_the_standing_alone_finds_the_same(name: str, norm: Norm) -> None:
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
    assert len(alone.asked[0]) == 8  # who stands is looked up once
    assert all(len(asked) <= 7 for asked in alone.asked[1:])


class Blinded(Toy):
    """Has no answer to bright images."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).mean(dim=1) > 0.55
        return torch.where(bright.unsqueeze(1), torch.nan, super().forward(x))


@pytest.mark.parametrize("ask", ["whole", "standing"])
def test_who_gets_no_answer_has_fallen_whatever_the_labels_of_the_others(ask: str) -> None:
    x = torch.full((4, 3, 6, 6), 0.5)
    model = linear()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    y = torch.tensor([1, 2, 0, 0])  # the first two are wrong by themselves, so not asked about
    found = make("square", iterations=30, ask=ask)(
        Blinded(model), x, y, ThreatModel("linf", 0.2), seed=0
    )
    assert found.fooled.all()
    assert found.non_finite > 0


def test_a_batch_dependent_defense_is_asked_about_its_whole_batch_all_the_same() -> None:
    model, x = linear(), small_images(8)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    y[2] = (y[2] + 1) % 4
    kept = Kept(model)
    kept.batch_dependent = True
    make("apgd-ce", iterations=3, ask="standing")(kept, x, y, ThreatModel("linf", 0.08), seed=0)
    assert {len(asked) for asked in kept.asked} == {8}


class Guarded(Toy):
    """Member 0 is answered wrongly in bright light, unless member 1 is brighter still."""

    batch_dependent = True

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        light = x.flatten(1).mean(dim=1)
        wrong = torch.stack([(light[0] > 0.55) & (light[1] < 0.6), light[1] > 0.7]).float()
        return torch.stack([1 - wrong, wrong], dim=1)


def frozen(defense: Toy, x: Tensor, y: Tensor) -> FrozenBatch:
    threat = ThreatModel("linf", 0.5)
    return FrozenBatch(Querier(defense, x, y, threat, plan=lambda _: Queries(0, 0)))


def test_members_that_stand_up_again_are_attacked_again() -> None:
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
        yield run({1: 0.8})  # member 0 stands again
        yield run({})

    batch.attack(runs())
    assert attacked == [[0, 1], [1], [0]]
    assert batch.standing.tolist() == [True, False]
    worst = batch.target.worst
    assert worst is not None
    assert worst.fooled.sum() == 1


def test_rows_that_belong_to_nobody_are_an_error() -> None:
    x, y = small_images(), torch.zeros(5, dtype=torch.int64)
    batch = frozen(Company(linear()), x, y)
    with pytest.raises(AttackError, match="4 rows asked about, of 5 members"):
        batch(x[:4])
    assert batch.ask(x[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 4)


def test_the_gradient_reaches_the_rows_asked_about() -> None:
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
