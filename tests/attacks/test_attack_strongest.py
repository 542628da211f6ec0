"""Tests of batches of each member's strongest image, and of attacks that start from them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dent.attacks import make
from dent.attacks.adaptive import AdaptiveAPGD
from dent.attacks.adaptive.apgd import apgd
from dent.attacks.adaptive.objectives import Aim, through
from dent.attacks.best import Best
from dent.attacks.losses import hinge, loss_named, margin, runner_up
from dent.attacks.querier import Querier, Queries
from dent.errors import ConfigError
from dent.threat import ThreatModel
from tests.attacks.attack_toys import Company, Toy, linear, small_images

LINF = ThreatModel("linf", 0.05)


class Watched(Company):
    """A `Company` that records every batch that it adapts to."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.asked: list[Tensor] = []

    def adapt(self, x: Tensor, *, differentiable: bool = False, last: int | None = None) -> Tensor:
        self.asked.append(x.detach().clone())
        return super().adapt(x, differentiable=differentiable, last=last)


def door(defense: Any, x: Tensor, y: Tensor) -> Querier:
    return Querier(defense, x, y, LINF, plan=lambda _: Queries(0, 0))


def test_outcome_queries_the_strongest_images_of_all_members_as_one_batch() -> None:
    x, watched = small_images(4), Watched(linear())
    y = torch.zeros(4, dtype=torch.int64)
    best = Best(door(watched, x, y))
    first, second = x + 0.01, x + 0.02
    wrong = torch.tensor
    best.offer(first, wrong([True, True, False, False]), torch.tensor([2.0, 1.0, -1.0, -3.0]))
    best.offer(second, wrong([False, False, True, False]), torch.tensor([-2.0, -1.0, 5.0, -2.0]))
    assert torch.equal(best.images, first)  # the batch with the most wrong predictions
    expected = torch.stack([first[0], first[1], second[2], second[3]])
    assert torch.equal(best.strongest, expected)
    watched.asked.clear()
    best.outcome()
    assert torch.equal(watched.asked[0], expected)
    assert len(watched.asked) == 2


def test_strongest_images_of_an_independent_defense_are_its_best_images() -> None:
    x = small_images(3)
    best = Best(door(linear(), x, torch.zeros(3, dtype=torch.int64)))
    best.offer(x + 0.01, torch.tensor([True, False, False]), torch.tensor([1.0, -1.0, -1.0]))
    best.offer(x + 0.02, torch.tensor([False, True, False]), torch.tensor([9.0, 1.0, -2.0]))
    assert best.strongest is best.images
    assert torch.equal(best.strongest, torch.stack([x[0] + 0.01, x[1] + 0.02, x[2] + 0.01]))


def test_batch_of_strongest_images_is_the_outcome_if_it_is_the_worst() -> None:
    class Alone(Toy):
        batch_dependent = True  # declared, but not true

    x, model = small_images(4), linear()
    defense, y = Alone(model), model(x).argmax(1)
    fooling = make("apgd-ce", iterations=20)(model, x, y, ThreatModel("linf", 0.3), seed=0)
    with torch.no_grad():
        best = Best(door(defense, x, y))
        for member in range(4):
            one = torch.arange(4) == member
            images = torch.where(one.reshape(-1, 1, 1, 1), fooling.adversarial, x)
            best.offer_served(images)
        assert best.fooled.sum() == 1
        outcome = best.outcome()
    assert outcome.fooled.all()
    assert torch.equal(outcome.adversarial, fooling.adversarial)


@pytest.mark.parametrize("pool", [1, 2])
def test_pool_starts_each_member_from_its_image_with_the_highest_margin(pool: int) -> None:
    x, watched = small_images(6), Watched(linear())
    y = watched(x).argmax(1)
    attack = AdaptiveAPGD(
        "stop-gradient", losses=("hinge",), iterations=2, warm=True, pool=pool, stride=0.5
    )
    watched.asked.clear()
    result = attack(watched, x, y, ThreatModel("linf", 1e-3), seed=0)
    # The natural images, the result of each transfer attack, and the start.
    served = watched.asked[: 2 + pool]
    with torch.no_grad():
        margins = torch.stack([margin(Company(linear())(batch), y) for batch in served])
    strongest = torch.stack(served)[margins.argmax(0), torch.arange(len(x))]
    assert torch.equal(watched.asked[2 + pool], strongest)
    assert (result.queries, result.backwards) == attack.queries(4)
    static = attack.unadapted(4)
    assert (static.forwards, static.backwards) == (4 * (1 + pool), 3 * (1 + pool))
    # Every transfer attack has another target, and so another result.
    assert len({batch.numpy().tobytes() for batch in served}) == 2 + pool


def test_rounds_add_results_of_gmsa_min_to_a_pool() -> None:
    x, watched = small_images(6), Watched(linear())
    y = watched(x).argmax(1)
    plain = AdaptiveAPGD("stop-gradient", losses=("hinge",), iterations=2, warm=True, pool=1)
    attack = replace(plain, rounds=2)
    threat = ThreatModel("linf", 1e-3)  # too small to fool any member
    watched.asked.clear()
    result = attack(watched, x, y, threat, seed=0)
    # The natural images, two transfers, the natural images, the results of two rounds, the start.
    served = watched.asked[:6]
    assert [torch.equal(batch, x) for batch in served] == [True, False, False, True, False, False]
    with torch.no_grad():
        margins = torch.stack([margin(Company(linear())(batch), y) for batch in served])
    strongest = torch.stack(served)[margins.argmax(0), torch.arange(len(x))]
    assert torch.equal(watched.asked[6], strongest)
    assert (result.queries, result.backwards) == attack.queries(4)
    asked, static = attack.queries(4), attack.unadapted(4)
    assert len(watched.asked) == asked.forwards - static.forwards
    module = attack(linear(), x, y, threat, seed=0)  # a plain module does not adapt
    assert (module.queries + 1, module.backwards) == plain.queries(4)
    with pytest.raises(ConfigError, match="rounds are for a pool, got 2 without one"):
        AdaptiveAPGD(warm=True, rounds=2)


def test_pool_larger_than_the_number_of_classes_targets_all_classes() -> None:
    settings = {"losses": "hinge", "iterations": 2, "warm": True}
    most, all_of_them = (make("adaptive-bpda", **settings, pool=pool) for pool in (9, 3))
    assert most.queries(4) == all_of_them.queries(4)
    x, defense = small_images(4), Company(linear())
    y = defense(x).argmax(1)
    found = [attack(defense, x, y, LINF, seed=1) for attack in (most, all_of_them)]
    assert torch.equal(found[0].adversarial, found[1].adversarial)


def test_first_step_of_apgd_has_the_length_of_the_stride() -> None:
    x, model = small_images(4), linear()
    y = model(x).argmax(1)
    threat = ThreatModel("linf", 0.01)
    for stride in (0.25, 0.5, 2.0):
        asked: list[Tensor] = []
        target = door(model, x, y)
        inner = through(target, None, Aim(loss_named("margin")), None)

        def objective(images: Tensor, asked: list[Tensor] = asked, inner: Any = inner) -> Any:
            asked.append(images)
            return inner(images)

        with torch.no_grad():
            apgd(objective, x, x, threat, iterations=3, stride=stride)
        moved = (asked[1] - x).abs().amax()
        assert moved == pytest.approx(0.01 * min(stride, 1.0), rel=1e-3)


def test_hinge_loss_is_the_margin_capped_at_half() -> None:
    logits, labels = torch.randn(50, 5), torch.randint(5, (50,))
    for targets in (None, runner_up(logits, labels, 2)):
        plain = margin(logits, labels, targets)
        assert torch.equal(hinge(logits, labels, targets), plain.clamp(max=0.5))


def test_pool_rounds_and_stride_are_in_the_settings_only_if_changed() -> None:
    settings = make("adaptive-unrolled", warm=True).settings()
    assert not {"pool", "rounds", "stride"} & set(settings)
    asked = make("adaptive-unrolled", warm=True, pool=2, stride=0.5)
    assert asked.settings() == settings | {"pool": 2, "stride": 0.5}
    assert not make("adaptive-unrolled", warm=True, pool=1, stride=0.5).covers(asked)
    assert make("adaptive-unrolled", warm=True, pool=3, stride=0.5).covers(asked)
