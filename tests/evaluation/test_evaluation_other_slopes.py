"""Gradients that are wrong only where the checks by runner-up and random moves do not look.

Nets and images are those of `test_evaluation_jumps`. A simple attack breaks every defense here.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dent.data.dataset import ArrayDataset
from dent.evaluation import Settings, Subject, evaluate, suite
from dent.evaluation.probe import gradient_check, other_slopes
from dent.evaluation.probe.defense_view import margin
from dent.evaluation.probe.gradient_check import check_gradient
from dent.evaluation.records.schema import GradientRecord, ProbeRecord
from dent.evaluation.results.another_attack import BREAKS_MORE
from dent.evaluation.results.certificate import CERTIFICATE, certificate_of, over_large_steps
from dent.evaluation.results.gates import LARGE_STEPS, NOT_IN_FIRST
from dent.evaluation.results.result import DefenseResult
from dent.evaluation.submission.fresh import Origin
from dent.threat import ThreatModel
from tests.evaluation.test_evaluation_every_class import CLEAR, SHIELDED, SIZE, toward
from tests.evaluation.test_evaluation_jumps import (
    CLASSES,
    COUNT,
    L2,
    LINF,
    NET,
    PIXELS,
    ROBUST,
    SIDE,
    STATIC,
    TEMPLATES,
    THIRD,
    X,
    Y,
    dataset,
)
from tests.evaluation.tricks import (
    Faint,
    Flattened,
    Hidden,
    Partly,
    Quantized,
    Quiet,
    Trick,
    VotedIfClear,
)


def few_pixels() -> nn.Sequential:
    """Return a linear net that sees 12 pixels, with a steep slope."""
    layer, draws = nn.Linear(PIXELS, CLASSES), torch.Generator().manual_seed(5)
    with torch.no_grad():
        layer.weight.zero_()
        seen = torch.randperm(PIXELS, generator=draws)[:12]
        layer.weight[:, seen] = 48 * torch.randn(CLASSES, 12, generator=draws)
        layer.bias.copy_(-layer.weight.sum(dim=1) / 2)
    return nn.Sequential(nn.Flatten(), layer)


FLATTENED = Flattened(CLEAR, ROBUST, scale=0.25)
FAINT = Faint(CLEAR, few_pixels(), lambda _: True)
EXCEPT_IN_DOUBLE = Faint(CLEAR, few_pixels(), lambda x: x.dtype == torch.float32)


def checked(defense: Any, x: Tensor = X, threat: ThreatModel = LINF) -> GradientRecord:
    return check_gradient(Origin(defense), x[:SIZE], Y[:SIZE], threat, seed=0)


def states(record: GradientRecord) -> tuple[str, bool | None]:
    probe = ProbeRecord.model_construct(gradient=record)
    return certificate_of(probe).state, over_large_steps(probe)


def result_of(
    defense: nn.Module, data: ArrayDataset, size: int = SIZE
) -> tuple[DefenseResult, set[str]]:
    """Run the suite: return the results of the defense, and its open gates."""
    subject = Subject(STATIC, data, {"it": defense}, suite("dynamic", "small"), LINF)
    found = evaluate(subject, Settings(batch_size=size, until="end")).defenses["it"]
    assert found.verdict is not None
    return found, {each.name for each in found.verdict.gates if each.open}


@pytest.mark.parametrize(
    ("trick", "open_"),
    [
        (FLATTENED, ("raised", False)),
        (FAINT, ("raised", False)),
        (EXCEPT_IN_DOUBLE, ("passed", False)),
    ],
    ids=["other-classes", "faint-pixels", "faint-in-float32"],
)
def test_slopes_that_attacks_cannot_see_do_not_hold(
    trick: Trick, open_: tuple[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert states(checked(trick)) == open_
    monkeypatch.setattr(
        gradient_check, "with_other_slopes", lambda _, __, ___, points, *____: points
    )
    assert states(checked(trick))[0] == ("raised" if trick is FAINT else "passed")


def test_a_simple_attack_breaks_a_defense_that_shows_slopes_of_two_classes() -> None:
    images, targets = X[:SIZE], (Y[:SIZE] + 2) % 4
    assert (toward(SHIELDED, images, targets, 1) != Y[:SIZE]).all()  # the same logits
    with torch.no_grad():
        assert FLATTENED(X).equal(SHIELDED(X))


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("net", [NET, CLEAR, ROBUST], ids=["weak", "clear", "robust"])
def test_slopes_of_honest_defenses_hold(net: nn.Module, threat: ThreatModel) -> None:
    assert states(checked(Hidden(NET, net), threat=threat)) == ("passed", True)
    assert states(checked(Quantized(NET, net), threat=threat)) == ("raised", True)


def test_errors_of_a_linear_net_are_zero_and_hidden_pixels_are_found() -> None:
    draws = torch.Generator().manual_seed(0)
    targets = [(Y + 1) % CLASSES, (Y + 2) % CLASSES]
    moves = [0.01 * torch.randn(X.shape, generator=draws).sign() for _ in range(4)]

    def errors(net: nn.Module, moves: list[Tensor], *, together: bool = False) -> Tensor:
        leaf = X.clone().requires_grad_()
        gradients = [
            torch.autograd.grad(margin(net(leaf), Y, each).sum(), leaf)[0] for each in targets
        ]
        with torch.no_grad():
            level = other_slopes.leveled(gradients, moves)
            return other_slopes.errors_over(net, gradients, X, Y, targets, level, together=together)

    assert errors(NET, moves).shape == (2, COUNT)
    assert errors(NET, moves).amax() < 1e-3
    assert errors(NET, moves, together=True).shape == (2, 1)
    assert errors(NET, moves, together=True).amax() < 1e-3
    assert errors(FAINT, moves).amin() > 0.75
    still = [torch.zeros_like(X)]
    assert errors(NET, still).equal(torch.zeros(2, COUNT))
    assert errors(nn.Sequential(NET, nn.Threshold(1e9, 0.0)), moves).equal(torch.zeros(2, COUNT))


@pytest.mark.parametrize(
    ("trick", "gates"),
    [
        (FLATTENED, {CERTIFICATE}),
        (FAINT, {CERTIFICATE}),
        pytest.param(EXCEPT_IN_DOUBLE, {LARGE_STEPS}, marks=pytest.mark.slow),
    ],
    ids=["other-classes", "faint-pixels", "faint-in-float32"],
)
def test_no_attack_of_the_suite_finds_slopes_that_are_hidden_but_there_is_no_gain(
    trick: Trick, gates: set[str]
) -> None:
    found, opened = result_of(trick, dataset())
    assert found.worst.served.correct > 0.8 * COUNT
    assert found.verdict is not None
    assert (found.verdict.ruling, opened) == ("inconclusive", gates)


def without_noise() -> ArrayDataset:
    """Return images that are only the template of their class."""
    images = 0.5 + 0.1 * TEMPLATES[Y]
    pixels = (images * 255).round().byte().reshape(COUNT, 3, SIDE, SIDE).permute(0, 2, 3, 1)
    return replace(dataset(), pixels=pixels.contiguous().numpy())


def details(x: Tensor) -> Tensor:
    """Return the size of what is not a template in each image, (N,)."""
    basis: Tensor = torch.linalg.qr(TEMPLATES.T.to(x)).Q
    rows = (x - 0.5).flatten(1)
    size: Tensor = (rows - rows @ basis @ basis.T).square().mean(dim=1).sqrt()
    return size


QUIET = Quiet(CLEAR, 11.0, details, least=0.016, most=0.018)


def test_noise_that_is_quiet_at_natural_images_is_measured_where_attacks_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, _ = without_noise().batch(range(SIZE))
    assert (toward(CLEAR, images, (Y[:SIZE] + 2) % 4, 1) != Y[:SIZE]).all()
    torch.manual_seed(0)
    with torch.no_grad():
        assert QUIET(images).equal(CLEAR(images))
    record = checked(QUIET, images)
    assert states(record) == ("passed", True)
    assert record.agreement is not None
    assert record.agreement < 0.1
    measure = gradient_check._agreement
    monkeypatch.setattr(
        gradient_check,
        "_agreement",
        lambda view, point, draws: measure(view, point, draws) if point.x is images else None,
    )
    assert checked(QUIET, images).agreement is None


@pytest.mark.slow
def test_noise_that_is_quiet_at_natural_images_gets_no_gain() -> None:
    found, opened = result_of(QUIET, without_noise())
    assert found.worst.served.correct > COUNT / 2
    assert found.verdict is not None
    assert (found.verdict.ruling, opened) == ("inconclusive", {"randomized"})


def brighter(*members: int) -> ArrayDataset:
    """Return the images, some with a brighter left half."""
    pixels, marked = dataset().pixels.astype(int), list(members)
    pixels[marked, :, : SIDE // 2] += 25
    pixels[marked, :, SIDE // 2 :] -= 25
    return replace(dataset(), pixels=pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("members", "gate"),
    [((2, 5, 10, 18, 23, 28, 30), BREAKS_MORE), ((5, 10, 18, 23, 28, 30), NOT_IN_FIRST)],
    ids=["one", "none"],
)
def test_a_shield_for_few_images_of_the_first_batch_gets_no_gain(
    members: tuple[int, ...], gate: str
) -> None:
    found, opened = result_of(Partly(NET, SHIELDED), brighter(*members), size=4)
    assert found.worst.served.correct == len(members)
    assert found.verdict is not None
    assert (found.verdict.ruling, opened) == ("inconclusive", {gate})


@pytest.mark.slow
def test_a_true_gain_on_few_images_is_still_shown() -> None:
    data = brighter(2, 5, 10, 18, 23, 28, 30)
    found, opened = result_of(Partly(NET, ROBUST), data, size=4)
    assert found.verdict is not None
    assert (found.verdict.ruling, opened) == ("robust gain", set())


def clear(x: Tensor) -> Tensor:
    """Return how much of a template an image has, (N,), from 0 (half or less) to 1 (most)."""
    share = ((x - 0.5).flatten(1) @ TEMPLATES.T.to(x) / PIXELS).amax(dim=1) / 0.1
    return ((share - 0.6) / 0.25).clamp(0, 1)


def test_a_vote_only_for_clear_images_is_not_found() -> None:
    voted = VotedIfClear(NET, THIRD, vote=20.0, scale=0.1, clear=clear)
    broken = torch.zeros(COUNT, dtype=torch.bool)
    for other in range(1, CLASSES):
        leaf = X.clone().requires_grad_()
        loss = margin(NET(leaf), Y, (Y + other) % CLASSES).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        with torch.no_grad():
            moved = LINF.project(X + LINF.eps * gradient.sign(), X)
            broken |= voted(moved).argmax(dim=1) != Y
    assert broken.all()
    with torch.no_grad():
        assert voted(X).argmax(dim=1).equal(Y)
    record = checked(voted)
    assert states(record) == ("passed", True)
    assert record.further is not None
    assert record.further.correct == SIZE
