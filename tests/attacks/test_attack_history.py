"""How an attack went, against what is counted by hand."""

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
    """Two classes, told apart by the sum of all pixels less a threshold, a known distance away."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1).sum(1) - self.threshold
        return torch.stack([score, -score], dim=1)


class Other(Known):
    """Answers by another model than its static base."""

    def __init__(self, base: nn.Module, other: nn.Module) -> None:
        super().__init__(base)
        self.other = other

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        del adaptation
        logits: Tensor = self.other(x)
        return logits


def images(*distances: float) -> Tensor:
    """Images of 2 x 2 x 3 pixels whose sum lies so many eps above 6, which is the threshold."""
    return torch.stack(
        [torch.full((3, 2, 2), (6 + distance * 12 * EPS) / 12) for distance in distances]
    )


def attacked(attack: Attack, defense: nn.Module, x: Tensor) -> tuple[AttackResult, History]:
    result = attack(defense.eval(), x, torch.zeros(len(x), dtype=torch.int64), THREAT, seed=0)
    assert result.history is not None
    return result, result.history


def test_members_fall_at_the_gradient_after_which_their_image_is_across() -> None:
    """A step moves every pixel by eps / 10, so a member at distance d falls after 10 d steps."""
    x = images(-0.5, 0.15, 0.35, 0.75, 1.5)
    pgd = PGD(iterations=20, step=0.1, random_start=False)
    result, history = attacked(pgd, Line(6.0), x)
    assert history.gradients == tuple(range(1, 21))
    # The image of gradient k + 1 lies k steps from the natural one.
    expected = [sum(taken - 1 > 10 * d for d in (-0.5, 0.15, 0.35, 0.75)) for taken in range(1, 21)]
    expected[0] = 1  # wrong as it is
    assert history.broken == tuple(expected)
    assert int(result.fooled.sum()) == 4 == history.broken[-1]
    assert (history.late, history.silent, history.untransferred) == (0, 0, 0)


def test_loss_and_length_of_the_gradient_are_those_of_the_images_asked_about() -> None:
    x = images(0.4, 0.8)
    _, history = attacked(PGD(iterations=3, step=0.1, random_start=False), Line(6.0), x)
    leaf, line = x.clone().requires_grad_(), Line(6.0)
    loss = F.cross_entropy(line(leaf), torch.zeros(2, dtype=torch.int64), reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert history.loss[0] == pytest.approx(float(loss.detach().mean()), rel=1e-3)
    assert history.norm[0] == pytest.approx(float(gradient.flatten(1).norm(dim=1).mean()), rel=1e-3)
    assert history.loss[0] < history.loss[1] < history.loss[2]


@pytest.mark.parametrize(("step", "unfinished"), [(0.02, True), (0.5, False)])
def test_a_loss_rises_until_the_corner_of_the_ball_is_reached(
    step: float, unfinished: bool
) -> None:
    """20 steps of eps / 50 are cut off on the way; of eps / 2 they end after two."""
    x = images(1.2, 1.3, -0.5)
    pgd = PGD(iterations=20, step=step, random_start=False)
    _, history = attacked(pgd, Line(6.0), x)
    assert history.rising == (2 if unfinished else 0)  # of those that stand


def test_who_falls_in_the_last_tenth_is_late() -> None:
    x = images(0.45, 0.955)
    pgd = PGD(iterations=20, step=0.05, random_start=False)
    _, history = attacked(pgd, Line(6.0), x)
    # The second falls at the last image, which no gradient was taken of; at 0.935 it is on the way.
    assert history.late == 0
    _, history = attacked(pgd, Line(6.0), images(0.45, 0.925))
    assert history.late == 1


@final
@dataclass(frozen=True)
class Forgetful(Attack):
    """PGD's walk that goes back where it came from, and submits that."""

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


def test_what_is_broken_and_not_given_back_is_a_silent_success() -> None:
    result, history = attacked(Forgetful(), Line(6.0), images(0.3, 0.6, 1.4))
    assert not result.fooled.any()
    assert history.silent == 2 == history.broken[-1]


def test_images_outside_the_ball_break_nobody() -> None:
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


def test_what_falls_to_the_static_base_alone_did_not_transfer() -> None:
    defense = Other(Line(6.0), Line(3.0))  # the answer is 2.5 eps further away than the base's
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
def test_without_gradients_of_members_in_their_places_there_is_no_history(attack: Attack) -> None:
    x, labels = images(0.3, 0.6, 1.4), torch.zeros(3, dtype=torch.int64)
    assert attack(Line(6.0).eval(), x, labels, THREAT, seed=0).history is None


def test_a_masked_gradient_has_no_length() -> None:
    _, history = attacked(PGD(iterations=3), Masked(Line(6.0)), images(0.3, 0.6))
    assert history.norm == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("taken", [1, POINTS, POINTS + 1, 5 * POINTS + 3])
def test_points_are_few_even_and_end_at_the_last(taken: int) -> None:
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


def test_of_a_batch_that_answers_as_one_only_its_most_broken_answer_was_a_success() -> None:
    """Two members fall in different batches: never both at once, so one is all there was."""
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


def test_what_is_computed_once_for_several_attacks_is_in_the_history_of_each() -> None:
    """An ascent of the static base that was kept from another attack reads as one that was not."""
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
