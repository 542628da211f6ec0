"""Defenses that no attack of the small budget breaks, though a simple attack breaks every member.

Nets and images are those of `test_evaluation_jumps`. Their logits are exact, linear over large
steps, and do not jump.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent.data.dataset import ArrayDataset
from dent.evaluation import Settings, Subject, evaluate, suite
from dent.evaluation.probe.gradient_check import check_gradient
from dent.evaluation.records.schema import GradientRecord, ProbeRecord
from dent.evaluation.results.another_attack import BREAKS_MORE
from dent.evaluation.results.certificate import certificate_of, over_large_steps
from dent.evaluation.submission.fresh import Origin
from dent.evaluation.verification.tolerance import comparable
from tests.attacks.known_defenses import withstands
from tests.evaluation.test_evaluation_jumps import (
    COUNT,
    LINF,
    NET,
    ROBUST,
    STATIC,
    X,
    Y,
    dataset,
    linear,
)
from tests.evaluation.tricks import Drowned, Hidden, Keyed, Shielded, Sized, Trick

SIZE = 16
CLEAR = linear(0, template=0.25)
"""Like `NET`, with wider margins."""
SHIELDED = Shielded(CLEAR, ROBUST, scale=0.25)
SIZED = Sized(NET, ROBUST, sizes=(1, 2, SIZE // 2, SIZE))
DROWNED = Drowned(CLEAR, 20.0)
DROWNED.batch_dependent = True  # its noise hides that it is not


def mislabeled() -> ArrayDataset:
    """Return the images, with one wrong label in every batch: attacks leave this member out."""
    labels = dataset().labels.copy()
    labels[::SIZE] = (labels[::SIZE] + 2) % 4
    return replace(dataset(), labels=labels)


def checked(defense: Any) -> GradientRecord:
    return check_gradient(Origin(defense), X[:SIZE], Y[:SIZE], LINF, seed=0)


def toward(defense: Any, x: Tensor, targets: Tensor, draws: int) -> Tensor:
    """Return the predictions after ten steps toward a target, each by a mean of gradients."""
    images = x
    for _ in range(10):
        leaf = images.clone().requires_grad_()
        logits = torch.stack([defense(leaf) for _ in range(draws)]).mean(dim=0)
        gap = logits.gather(1, targets[:, None]).squeeze(1) - logits.gather(1, Y[:SIZE, None])[:, 0]
        (gradient,) = torch.autograd.grad(gap.sum(), leaf)
        images = LINF.project(images + LINF.eps / 4 * gradient.sign(), x)
    with torch.no_grad():
        predictions: Tensor = defense(images).argmax(dim=1)
    return predictions


@pytest.mark.parametrize(
    ("trick", "draws"),
    [(SHIELDED, 1), (SIZED, 1), (DROWNED, 100)],
    ids=["shield", "sizes", "noise"],
)
def test_a_simple_attack_breaks_a_defense_that_passes_every_other_check(
    trick: Trick, draws: int
) -> None:
    torch.manual_seed(0)
    assert (toward(trick, X[:SIZE], (Y[:SIZE] + 2) % 4, draws) != Y[:SIZE]).all()
    record = checked(trick)
    probe = ProbeRecord.model_construct(gradient=record)
    assert (certificate_of(probe).state, over_large_steps(probe)) == ("passed", True)


@pytest.mark.parametrize("trick", [SHIELDED, SIZED], ids=["shield", "sizes"])
def test_the_attack_toward_every_class_breaks_it(trick: Trick) -> None:
    further = checked(trick).further
    assert further is not None
    assert (further.correct, further.total) == (0, SIZE)


def test_the_attack_toward_every_class_breaks_no_robust_net() -> None:
    assert withstands(ROBUST, X, Y, LINF.eps).all()
    record = checked(Hidden(NET, ROBUST))
    assert record.further is not None
    assert (record.further.correct, record.agreement) == (SIZE, None)


def test_noise_that_drowns_the_gradient_is_measured() -> None:
    drowned, loud = checked(DROWNED), checked(Drowned(CLEAR, 3.0))
    for record, left in ((drowned, SIZE / 2), (loud, 0)):
        assert record.further is not None
        assert record.further.correct >= left
    assert drowned.agreement is not None
    assert loud.agreement is not None
    assert drowned.agreement < 0.1 < loud.agreement


def test_an_older_record_is_compared_without_what_it_lacks() -> None:
    record = checked(NET)
    older = record.model_copy(update={"points": record.points[:2], "further": None})
    assert comparable(older, record) == older
    assert comparable(record, record) == record


def test_a_planted_pattern_is_not_found() -> None:
    key = torch.randn(X.shape[1:], generator=torch.Generator().manual_seed(99)).sign()
    keyed = Keyed(ROBUST, key, least=LINF.eps / 2)
    record = checked(keyed)
    assert over_large_steps(ProbeRecord.model_construct(gradient=record))
    assert record.further is not None
    assert record.further.correct == SIZE
    with torch.no_grad():
        assert keyed(X).argmax(dim=1).equal(Y)
        assert (keyed(LINF.project(X + LINF.eps * key, X)).argmax(dim=1) != Y).all()


@pytest.mark.parametrize(
    ("trick", "data", "size", "gate"),
    [
        (SHIELDED, dataset(), SIZE, BREAKS_MORE),
        (SIZED, mislabeled(), SIZE, BREAKS_MORE),
        pytest.param(DROWNED, dataset(), 4, "randomized", marks=pytest.mark.slow),
    ],
    ids=["shield", "sizes", "noise"],
)
def test_no_attack_of_the_suite_breaks_it_but_it_gets_no_gain(
    trick: Trick, data: ArrayDataset, size: int, gate: str
) -> None:
    subject = Subject(STATIC, data, {"it": trick}, suite("dynamic", "small"), LINF)
    result = evaluate(subject, Settings(batch_size=size, until="end"))
    found, static = result.defenses["it"], result.defenses["static"]
    assert found.worst.served.correct > COUNT / 2
    assert static.worst.served.correct == 0
    assert found.verdict is not None
    assert found.verdict.ruling == "inconclusive"
    assert {each.name for each in found.verdict.gates if each.open} == {gate}


@pytest.mark.parametrize(
    ("defense", "ruling", "opened"),
    [(SHIELDED, "inconclusive", {BREAKS_MORE}), (ROBUST, "robust gain", set())],
    ids=["shield", "robust net"],
)
def test_on_mixed_batches_a_shield_gets_no_gain_but_a_robust_net_does(
    defense: nn.Module, ruling: str, opened: set[str]
) -> None:
    attacks = suite("dynamic", "small", mixed=True)
    subject = Subject(STATIC, dataset(), {"it": defense}, attacks, LINF)
    result = evaluate(subject, Settings(batch_size=SIZE, mix=0.5, until="end"))
    found = result.defenses["it"].verdict
    assert found is not None
    assert found.ruling == ruling
    assert {each.name for each in found.gates if each.open} == opened
