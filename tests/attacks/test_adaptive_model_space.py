"""Tests of model-space attacks: loss and gradient of the ensemble, rounds, and results."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent.attacks.adaptive import ModelSpace
from dent.attacks.adaptive.objectives import Aim, least_of, mean_of, through
from dent.attacks.losses import cross_entropy, margin
from dent.attacks.querier import Querier, Queries
from dent.errors import ConfigError
from dent.threat import ThreatModel
from tests.attacks.attack_toys import Company, Toy, linear, small_images
from tests.attacks.known_defenses import Identity

LINF = ThreatModel("linf", 0.05)


def door(defense: Any, x: Tensor, y: Tensor) -> Querier:
    return Querier(defense, x, y, LINF, plan=lambda _: Queries(0, 0))


def models(count: int = 3) -> list[nn.Module]:
    return [linear(seed=seed) for seed in range(count)]


def test_mean_and_least_loss_of_several_models_match_autograd() -> None:
    x, y = small_images(), torch.tensor([0, 1, 2, 3, 0])
    target, views = door(linear(), x, y), models()
    leaf = x.clone().requires_grad_()
    losses = torch.stack([margin(view(leaf), y) for view in views])
    for combine, expected in ((mean_of, losses.mean(0)), (least_of, losses.amin(0))):
        (gradient,) = torch.autograd.grad(expected.sum(), leaf, retain_graph=True)
        with torch.no_grad():
            found = combine(target, views, Aim(margin))(x)
        torch.testing.assert_close(found.loss, expected.detach())
        torch.testing.assert_close(found.gradient, gradient)
    assert len({int(i) for i in losses.argmin(0)}) > 1  # not always the same model


def test_through_averages_loss_and_gradient_over_submissions() -> None:
    class Dice(Toy):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            return self.model(x) * (1 + torch.rand(1))  # type: ignore[no-any-return]

    x, y = small_images(), torch.tensor([0, 1, 2, 3, 0])
    dice = Dice(linear())
    target = door(dice, x, y)
    torch.manual_seed(1)
    with torch.no_grad():
        found = through(target, None, Aim(margin), None, submissions=3)(x)
    torch.manual_seed(1)
    leaf = x.clone().requires_grad_()
    losses = torch.stack([margin(dice(leaf), y) for _ in range(3)]).mean(0)
    torch.testing.assert_close(found.loss, losses.detach())
    torch.testing.assert_close(found.gradient, torch.autograd.grad(losses.sum(), leaf)[0])
    assert target.done == (3, 3)


def test_targeted_loss_is_the_negative_cross_entropy_of_the_target() -> None:
    x, y = small_images(), torch.tensor([0, 1, 2, 3, 0])
    target, goal = door(linear(), x, y), torch.tensor([1, 2, 3, 0, 1])
    with torch.no_grad():
        found = mean_of(target, models(1), Aim(cross_entropy, goal))(x)
    expected = -nn.functional.cross_entropy(models(1)[0](x), goal, reduction="none")
    torch.testing.assert_close(found.loss, expected)


class Diary(Company):
    """Records the batches that it adapts to, and the adaptations that it predicts with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.adapted: list[Tensor] = []
        self.asked: list[list[Tensor]] = []  # adaptations of all predictions, per call of `adapt`

    def adapt(self, x: Tensor, *, differentiable: bool = False, last: int | None = None) -> Tensor:
        self.adapted.append(x.detach().clone())
        self.asked.append([])
        return super().adapt(x, differentiable=differentiable, last=last)

    def predict(self, x: Tensor, adaptation: Tensor) -> Tensor:
        self.asked[-1].append(adaptation)
        return super().predict(x, adaptation)


@pytest.mark.parametrize(
    ("ensemble", "used"), [("fpa", [1, 1, 1]), ("gmsa-avg", [1, 2, 3]), ("gmsa-min", [1, 2, 3])]
)
def test_fpa_rounds_attack_one_model_and_gmsa_rounds_all_models_so_far(
    ensemble: Any, used: list[int]
) -> None:
    x = small_images(6)
    diary = Diary(linear())
    y = Company(diary.model)(x).argmax(1)
    attack = ModelSpace(ensemble, rounds=3, iterations=2)
    attack(diary, x, y, ThreatModel("linf", 1e-3), seed=0)
    # The natural batch, one batch per round, the members' strongest images, and the result again.
    assert len(diary.adapted) == 6
    assert torch.equal(diary.adapted[0], x)
    # The first prediction after each adaptation is the query of its batch.
    rounds = [{id(adaptation) for adaptation in after[1:]} for after in diary.asked[:3]]
    assert [len(models) for models in rounds] == used
    newest = [after[0] for after in diary.asked[:3]]
    assert all(id(new) in models for new, models in zip(newest, rounds, strict=True))


def test_result_is_the_queried_batch_with_most_wrong_predictions() -> None:
    x = small_images(8)
    diary = Diary(linear())
    y = Company(diary.model)(x).argmax(1)
    result = ModelSpace("gmsa-avg", rounds=4, iterations=4)(diary, x, y, LINF, seed=0)
    candidates = diary.adapted[:-1]
    wrong = [int((Company(diary.model)(batch).argmax(1) != y).sum()) for batch in candidates]
    assert any(torch.equal(result.adversarial, batch) for batch in candidates)
    assert int(result.fooled.sum()) == max(wrong)
    assert max(wrong) > min(wrong)


@pytest.mark.parametrize("ensemble", ["fpa", "gmsa-avg", "gmsa-min"])
def test_restarts_and_targets_add_runs_to_model_space_attacks(ensemble: Any) -> None:
    x, defense = small_images(), Identity(linear())
    y = defense(x).argmax(1)
    threat = ThreatModel("linf", 1e-4)  # too small to fool any member
    plain = partial(ModelSpace, ensemble, rounds=2, iterations=2)
    alone = plain()(defense, x, y, threat, seed=0)
    more = plain(restarts=2, targets=2)(defense, x, y, threat, seed=0)
    assert more.queries - 2 <= 4 * (alone.queries - 2) * 1.3
    assert more.queries > 3 * (alone.queries - 2)
    assert set(more.fooled_after) == {
        "round-1",
        "round-2",
        "margin-target-1",
        "margin-target-2",
    }


def test_unrolled_adds_the_defense_itself_to_the_ensemble() -> None:
    x = small_images(6)
    diary = Diary(linear())
    y = Company(diary.model)(x).argmax(1)
    threat = ThreatModel("linf", 1e-3)
    attack = ModelSpace("fpa", rounds=1, iterations=3, unrolled=True)
    attack(diary, x, y, threat, seed=0)
    # The natural batch, four evaluations with one adaptation each, the new batch, two at the end.
    assert len(diary.adapted) == 1 + 4 + 1 + 2
    assert attack.name == "fpa-unrolled"
    note = ModelSpace("fpa", unrolled=True, rounds=1)(Bare(linear()), x, y, threat, seed=0).notes
    assert note == ("not available: fpa-unrolled: Bare.adapt has no differentiable",)


class Bare(Toy):
    def adapt(self, x: Tensor) -> None:  # type: ignore[override]
        return None


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"ensemble": "gmsa"}, "must be one of fpa"),
        ({"rounds": 0}, "rounds"),
        ({"iterations": 0}, "iterations"),
        ({"restarts": 0}, "restarts"),
        ({"targets": -1}, "targets"),
        ({"rho": 1.0}, "rho"),
        ({"loss": "square"}, "loss"),
    ],
)
def test_invalid_settings_of_model_space_are_refused(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ModelSpace(**values)
