"""Tests of the history of an attack against values by hand."""

from dataclasses import dataclass
from typing import final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dent.attacks import PGD, Attack, AttackResult, Outcome, Querier, make
from dent.attacks.adaptive.static_ascents import forget
from dent.attacks.history import POINTS, History, Recorder
from dent.threat import ThreatModel
from tests.attacks.known_defenses import Known, Masked

EPS = 0.1
THREAT = ThreatModel("linf", EPS)


class Line(nn.Module):
    """A classifier with two classes: whether the sum of all pixels is above a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1).sum(1) - self.threshold
        return torch.stack([score, -score], dim=1)


class Other(Known):
    """Predicts with another model than its static model."""

    def __init__(self, base: nn.Module, other: nn.Module) -> None:
        super().__init__(base)
        self.other = other

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        del adaptation
        logits: Tensor = self.other(x)
        return logits


def images(*distances: float) -> Tensor:
    """Return images (N, 3, 2, 2) at these distances, in eps, from the boundary of `Line(6.0)`."""
    return torch.stack(
        [torch.full((3, 2, 2), (6 + distance * 12 * EPS) / 12) for distance in distances]
    )


def attacked(attack: Attack, defense: nn.Module, x: Tensor) -> tuple[AttackResult, History]:
    result = attack(defense.eval(), x, torch.zeros(len(x), dtype=torch.int64), THREAT, seed=0)
    assert result.history is not None
    return result, result.history


def test_history_counts_a_member_as_broken_once_it_crosses_the_boundary() -> None:
    """A step moves every pixel by eps / 10. A member at distance d is fooled after 10 d steps."""
    x = images(-0.5, 0.15, 0.35, 0.75, 1.5)
    pgd = PGD(iterations=20, step=0.1, random_start=False)
    result, history = attacked(pgd, Line(6.0), x)
    assert history.gradients == tuple(range(1, 21))
    # The image of gradient k + 1 lies k steps from the natural one.
    expected = [sum(taken - 1 > 10 * d for d in (-0.5, 0.15, 0.35, 0.75)) for taken in range(1, 21)]
    expected[0] = 1  # naturally wrong
    assert history.broken == tuple(expected)
    assert int(result.fooled.sum()) == 4 == history.broken[-1]
    assert (history.late, history.silent, history.untransferred) == (0, 0, 0)


def test_history_has_the_mean_loss_and_gradient_norm_of_the_queried_images() -> None:
    x = images(0.4, 0.8)
    _, history = attacked(PGD(iterations=3, step=0.1, random_start=False), Line(6.0), x)
    leaf, line = x.clone().requires_grad_(), Line(6.0)
    loss = F.cross_entropy(line(leaf), torch.zeros(2, dtype=torch.int64), reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert history.loss[0] == pytest.approx(float(loss.detach().mean()), rel=1e-3)
    assert history.norm[0] == pytest.approx(float(gradient.flatten(1).norm(dim=1).mean()), rel=1e-3)
    assert history.loss[0] < history.loss[1] < history.loss[2]


@pytest.mark.parametrize(("step", "unfinished"), [(0.02, True), (0.5, False)])
def test_loss_counts_as_rising_if_the_corner_of_the_ball_is_not_reached(
    step: float, unfinished: bool
) -> None:
    """20 steps of eps / 50 do not reach the corner. Steps of eps / 2 reach it after two."""
    x = images(1.2, 1.3, -0.5)
    pgd = PGD(iterations=20, step=step, random_start=False)
    _, history = attacked(pgd, Line(6.0), x)
    assert history.rising == (2 if unfinished else 0)  # the third member is fooled


def test_members_broken_in_the_last_tenth_of_the_gradients_count_as_late() -> None:
    x = images(0.45, 0.955)
    pgd = PGD(iterations=20, step=0.05, random_start=False)
    _, history = attacked(pgd, Line(6.0), x)
    # The second member is fooled by the last image, which has no gradient. At 0.925 an earlier one
    # fools it.
    assert history.late == 0
    _, history = attacked(pgd, Line(6.0), images(0.45, 0.925))
    assert history.late == 1


@final
@dataclass(frozen=True)
class Forgetful(Attack):
    """An attack that takes one step up, one step back, and returns the result."""

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        del seed
        x = target.natural
        for sign in (1, -1):
            with torch.enable_grad():
                leaf = x.clone().requires_grad_()
                loss = F.cross_entropy(target(leaf), target.labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, leaf)
            x = threat.project(x + sign * threat.eps * gradient.sign(), target.natural)
            target(x)
        return Outcome(x, target(x).argmax(dim=1) != target.labels)


def test_broken_members_that_the_attack_does_not_return_count_as_silent() -> None:
    result, history = attacked(Forgetful(), Line(6.0), images(0.3, 0.6, 1.4))
    assert not result.fooled.any()
    assert history.silent == 2 == history.broken[-1]


def test_images_outside_the_ball_do_not_count_as_broken() -> None:
    @final
    @dataclass(frozen=True)
    class Outside(Attack):
        def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
            del threat, seed
            with torch.enable_grad():
                leaf = (target.natural * 0).requires_grad_()
                total = target(leaf).sum()
            torch.autograd.grad(total, leaf)
            return Outcome(target.natural, torch.zeros_like(target.labels, dtype=torch.bool))

    _, history = attacked(Outside(), Line(6.0), images(0.3, 0.6))
    assert (history.broken[-1], history.silent) == (0, 0)


def test_members_broken_only_on_the_static_model_count_as_untransferred() -> None:
    # The boundary of the defense is 2.5 eps further away than that of the static model.
    defense = Other(Line(6.0), Line(3.0))
    transfer = make("adaptive-transfer", iterations=5, losses="margin")
    result, history = attacked(transfer, defense, images(0.3, 0.6, 1.4))
    assert not result.fooled.any()
    assert (history.untransferred, history.broken[-1]) == (2, 0)
    exact = make("adaptive-unrolled", iterations=5, losses="margin")
    _, history = attacked(exact, Other(Line(3.0), Line(6.0)), images(0.3, 0.6, 1.4))
    assert (history.untransferred, history.broken[-1]) == (0, 2)


@pytest.mark.parametrize(
    "attack", [make("square", iterations=5), make("apgd-ce", iterations=5, protocol="published")]
)
def test_attacks_without_gradients_of_known_members_have_no_history(attack: Attack) -> None:
    x, labels = images(0.3, 0.6, 1.4), torch.zeros(3, dtype=torch.int64)
    assert attack(Line(6.0).eval(), x, labels, THREAT, seed=0).history is None


def test_masked_gradient_has_norm_zero_in_the_history() -> None:
    _, history = attacked(PGD(iterations=3), Masked(Line(6.0)), images(0.3, 0.6))
    assert history.norm == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("taken", [1, POINTS, POINTS + 1, 5 * POINTS + 3])
def test_history_points_are_few_and_evenly_spaced_and_include_the_last(taken: int) -> None:
    recorder = Recorder(torch.zeros(2, dtype=torch.int64), batch_dependent=False)
    for index in range(taken):
        wrong = torch.tensor([index >= taken // 2, False])
        recorder.answered(torch.tensor([[0.0, 1.0 * index], [1.0, 0.0]]), None)
        recorder.broke(wrong, None, along=True)
        recorder.took(torch.full((2, 3), float(index)))
    history = recorder.history(torch.tensor([True, False]))
    assert history is not None
    *even, last = history.gradients
    assert last == taken
    assert len(even) <= POINTS
    assert even == list(range(1, taken, even[1] - even[0] if len(even) > 1 else 1))[: len(even)]
    assert history.broken == tuple(int(at > taken // 2) for at in history.gradients)
    assert history.norm == pytest.approx([(at - 1) * 3**0.5 for at in history.gradients], rel=1e-3)


def test_silent_counts_the_most_broken_batch_if_the_defense_is_batch_dependent() -> None:
    """Two members are broken in different batches, so the most broken batch has one."""
    recorder = Recorder(torch.zeros(3, dtype=torch.int64), batch_dependent=True)
    for wrong in ([True, False, False], [False, True, False]):
        recorder.broke(torch.tensor(wrong), None, along=True)
        recorder.answered(torch.zeros(3, 2), None)
        recorder.took(torch.ones(3, 4))
    fooled = torch.tensor([True, False, False])
    history = recorder.history(fooled)
    assert history is not None
    assert (history.silent, history.broken[-1]) == (0, 2)
    nothing = recorder.history(torch.zeros(3, dtype=torch.bool))
    assert nothing is not None
    assert nothing.silent == 1


def test_history_is_the_same_for_a_kept_and_a_computed_static_ascent() -> None:
    """An ascent may be kept from an earlier attack on the defense or on its static model."""
    x, defense = images(0.3, 0.6, 1.4, -0.2), Other(Line(6.0), Line(3.0))
    transfer = make("adaptive-transfer", iterations=30, losses="margin", targets=1)
    forget()
    result, computed = attacked(transfer, defense, x)
    _, kept = attacked(transfer, defense, x)
    assert kept == computed
    assert computed.gradients[-1] == result.backwards == 62
    assert (computed.broken[-1], computed.untransferred) == (0, 3)
    forget()
    _, static = attacked(transfer, Line(6.0), x)
    assert (static.broken[-1], static.untransferred, static.silent) == (3, 0, 0)
    _, again = attacked(transfer, defense, x)  # kept from the attack on the static model
    assert again == computed
