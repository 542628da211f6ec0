"""Tests of `surrogates` on models that are hard to copy or to train."""

import warnings
from typing import Any

import torch
from torch import nn

from dent.attacks import AttackResult, make
from dent.threat import ThreatModel
from tests.attacks.attack_toys import linear, small_images


def attacked(model: nn.Module) -> AttackResult:
    x = small_images()
    y = model(x).argmax(1)
    attack = make("surrogates", iterations=3, lessons=1, epochs=2)
    return attack(model, x, y, ThreatModel("linf", 0.02), seed=0)


def test_a_torchscript_model_is_taught_like_the_module_that_it_was_traced_from() -> None:
    model = linear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(model, small_images())  # type: ignore[no-untyped-call]
    found, expected = attacked(traced), attacked(model)
    assert not expected.fooled.all()  # otherwise there is no lesson
    assert torch.equal(found.fooled, expected.fooled)
    torch.testing.assert_close(found.adversarial, expected.adversarial)
    assert (found.queries, found.backwards) == (expected.queries, expected.backwards)


def test_a_model_that_cannot_be_copied_gets_no_lesson_and_a_note() -> None:
    class Single(nn.Sequential):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there is only one")

    result = attacked(Single(*linear()).eval())
    assert result.notes == ("no lessons: Single cannot be copied (TypeError: there is only one)",)
    assert result.queries < attacked(linear()).queries
