"""Scores that jump, so that no gradient and no score leads to the wrong predictions.

All nets are linear, with 3,072 pixels. They share a template for each class, which decides on
natural images. Their other weights are independent and decide under attack. So random moves and the
adversarial images of one net break no other net.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dent.data.dataset import ArrayDataset
from dent.evaluation import Settings, Subject, evaluate, suite
from dent.evaluation.probe import gradient_check, jumps
from dent.evaluation.probe.gradient_check import check_gradient
from dent.evaluation.records.schema import ProbeRecord
from dent.evaluation.results.certificate import CERTIFICATE, over_large_steps
from dent.evaluation.results.gates import LARGE_STEPS
from dent.evaluation.submission.fresh import Origin
from dent.threat import ThreatModel
from tests.attacks.known_defenses import withstands
from tests.evaluation.tricks import Blended, Hidden, Partly, Quantized, Recognizes, Trick, Voted

SIDE, CLASSES, COUNT = 32, 4, 32
PIXELS = 3 * SIDE * SIDE
LINF, L2 = ThreatModel("linf", "8/255"), ThreatModel("l2", "1.2")
DRAWS = torch.Generator().manual_seed(3)
TEMPLATES = torch.randn(CLASSES, PIXELS, generator=DRAWS).sign()


def dataset() -> ArrayDataset:
    labels = torch.arange(COUNT) % CLASSES
    noise = torch.randn(COUNT, PIXELS, generator=torch.Generator().manual_seed(4))
    images = (0.5 + 0.1 * TEMPLATES[labels] + 0.1 * noise).clamp(0.13, 0.87)
    pixels = (images * 255).round().byte().reshape(COUNT, 3, SIDE, SIDE).permute(0, 2, 3, 1)
    return ArrayDataset(
        name="templates",
        split="test",
        classes=tuple("abcd"),
        pixels=pixels.contiguous().numpy(),
        labels=labels.numpy(),
        sample_ids=tuple(range(COUNT)),
    )


X, Y = dataset().batch(range(COUNT))
EVERYBODY = torch.ones(COUNT, dtype=torch.bool)


def linear(seed: int, template: float = 0.12, independent: float = 1.0) -> nn.Sequential:
    layer = nn.Linear(PIXELS, CLASSES)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = independent * torch.randn(CLASSES, PIXELS, generator=draws)
        layer.weight.copy_(weight + template * TEMPLATES)
        layer.bias.copy_(-layer.weight.sum(dim=1) / 2)
    return nn.Sequential(nn.Flatten(), layer).eval()


NET, STATIC, THIRD = linear(0), linear(1), linear(2)
"""Correct on all natural images, and robust on none."""
ROBUST = linear(7, template=0.3, independent=0.2)
VOTED = Voted(NET, THIRD, vote=20.0, scale=0.1)
BLENDED = Blended(NET, THIRD, vote=20.0, scale=0.1)
RECOGNIZES = Recognizes(NET, ROBUST)


MARKED = [0, 5, 10, 18, 23, 28]
"""Images whose left half is brighter in `marked()`."""


def marked() -> ArrayDataset:
    pixels = dataset().pixels.astype(int)
    pixels[MARKED, :, : SIDE // 2] += 25
    pixels[MARKED, :, SIDE // 2 :] -= 25
    return replace(dataset(), pixels=pixels.clip(0, 255).astype(np.uint8))


def holds(defense: Any, threat: ThreatModel, images: Tensor = X) -> bool | None:
    record = check_gradient(Origin(defense), images[:16], Y[:16], threat, seed=0)
    return over_large_steps(ProbeRecord.model_construct(gradient=record))


def test_nets_have_the_accuracies_that_the_other_tests_assume() -> None:
    for net in (NET, STATIC, THIRD):
        assert not withstands(net, X, Y, LINF.eps).any()
        with torch.no_grad():
            assert net(X).argmax(dim=1).equal(Y)
    assert withstands(ROBUST, X, Y, LINF.eps).all()


@pytest.mark.parametrize(
    ("trick", "threat"), [(VOTED, LINF), (VOTED, L2), (BLENDED, LINF), (RECOGNIZES, L2)]
)
def test_scores_that_jump_do_not_hold_over_large_steps(
    trick: Trick, threat: ThreatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert holds(trick, threat) is False
    monkeypatch.setattr(gradient_check, "_scores_jump", lambda *_: False)
    assert holds(trick, threat) is True  # nothing else shows it


def test_scores_that_jump_for_the_few_members_that_attacks_leave_do_not_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, _ = marked().batch(range(COUNT))
    wide = linear(0, template=0.25)
    partly = Partly(wide, Voted(wide, THIRD, vote=20.0, scale=0.1))
    assert holds(partly, LINF, images) is False
    rule = jumps.too_many
    monkeypatch.setattr(
        jumps, "too_many", lambda jumped, of, standing: rule(jumped, of, ~of & standing)
    )
    assert holds(partly, LINF, images) is True  # less than a quarter of all members jump


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("net", [NET, ROBUST], ids=["weak", "robust"])
def test_scores_of_honest_defenses_do_not_jump(net: nn.Module, threat: ThreatModel) -> None:
    assert holds(Hidden(NET, net), threat)
    assert holds(Quantized(NET, net), threat)


def test_a_linear_net_changes_at_a_boundary_as_its_weights_say() -> None:
    ends = X.roll(1, dims=0)  # the neighbor has another class
    with torch.no_grad():
        logits, moved = NET(X), NET(X) - NET(ends)
        boundary = jumps.boundary_on_line(NET, X, ends, logits, LINF)
    change, whole = boundary.change, boundary.whole
    assert boundary.found.all()
    assert boundary.classes[:, 0].equal(logits.argmax(dim=1))
    longest = float(LINF.distance(ends, X).max())
    share = 0.5 ** math.ceil(math.log2(16 * longest / LINF.eps))
    rows, classes = torch.arange(COUNT), logits.argmax(dim=1)
    expected = moved[rows, classes] - moved[rows, classes.roll(1)]
    direct = ((whole / expected) - 1).abs() < 1e-3  # else a third class lies between the two
    assert direct.sum() > COUNT / 2
    torch.testing.assert_close((change / whole), torch.full_like(whole, share), rtol=0.02, atol=0)


def test_scores_that_are_far_steeper_at_the_boundary_are_found() -> None:
    promised = torch.full((COUNT,), 100.0, dtype=torch.float64)
    with torch.no_grad():
        found = [
            jumps.at_boundaries(
                NET,
                lambda *_, times=times: times * promised,
                X,
                promised,
                LINF,
                torch.Generator(),
                EVERYBODY,
            )
            for times in (9, 11)
        ]
    assert found == [False, True]


def test_a_batch_of_one_class_is_compared_with_noise() -> None:
    alike = X[Y == 0]
    draws = torch.Generator().manual_seed(0)
    promised = torch.full((len(alike),), 10.0, dtype=torch.float64)
    with torch.no_grad():
        found = [
            jumps.at_boundaries(
                net, lambda *_: promised, alike, promised, LINF, draws, EVERYBODY[: len(alike)]
            )
            for net in (NET, VOTED)
        ]
    assert found == [False, True]


@pytest.mark.parametrize(
    ("trick", "threat", "gate"), [(BLENDED, LINF, LARGE_STEPS), (RECOGNIZES, L2, CERTIFICATE)]
)
def test_no_attack_breaks_a_defense_whose_scores_jump_but_it_gets_no_gain(
    trick: Trick, threat: ThreatModel, gate: str
) -> None:
    subject = Subject(STATIC, dataset(), {"it": trick}, suite("dynamic", "small"), threat)
    result = evaluate(subject, Settings(batch_size=16, until="end"))
    found, static = result.defenses["it"], result.defenses["static"]
    assert (found.worst.served.correct, static.worst.served.correct) == (COUNT, 0)
    assert found.verdict is not None
    assert found.verdict.ruling == "inconclusive"
    assert {each.name for each in found.verdict.gates if each.open} == {gate}
