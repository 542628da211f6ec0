"""Tests that descriptions of models are equal for copies, and differ for different models."""

import copy
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dent.attacks.adaptive.described import Description, described, unchanged
from dent.evaluation.submission.fresh import Origin, fresh
from tests.attacks.attack_toys import linear, small_images

Change = Callable[[Tensor], Tensor]


class Before(nn.Module):
    """A linear model of changed images, with any attribute."""

    def __init__(self, change: Any = None, value: Any = None) -> None:
        super().__init__()
        self.model = linear()
        self.change = change
        self.value = value
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(self.change(x) if callable(self.change) else x)
        return logits


def rounding(levels: int) -> Change:
    return lambda x: (levels * x).round() / levels


def with_default(levels: int) -> Change:
    def change(x: Tensor, levels: int = levels) -> Tensor:
        return (levels * x).round() / levels

    return change


def rounded(x: Tensor, levels: int) -> Tensor:
    return (levels * x).round() / levels


class Levels:
    """A plain object with a setting."""

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def __call__(self, x: Tensor) -> Tensor:
        return rounded(x, self.levels)


def hooked(levels: int) -> nn.Module:
    model = Before()
    model.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0], levels),))
    return model


def with_buffer(levels: int, *, persistent: bool) -> nn.Module:
    model = Before()
    model.register_buffer("levels", torch.tensor(levels), persistent=persistent)
    return model


def of_local_class(levels: int) -> nn.Module:
    class Local(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return rounded(x, levels)

    return Local().eval()


def with_own_forward(levels: int) -> nn.Module:
    model: Any = Before()
    model.forward = rounding(levels)
    return model  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "number": lambda levels: Before(value=levels),
    "nested": lambda levels: Before(value=({"levels": [levels, None]}, "text", 0.5)),
    "closure": lambda levels: Before(rounding(levels)),
    "default": lambda levels: Before(with_default(levels)),
    "partial": lambda levels: Before(partial(rounded, levels=levels)),
    "object": lambda levels: Before(Levels(levels)),
    "bound method": lambda levels: Before(Levels(levels).__call__),
    "tensor": lambda levels: Before(value=torch.tensor([levels])),
    "bfloat16": lambda levels: Before(value=torch.tensor(levels, dtype=torch.bfloat16)),
    "array": lambda levels: Before(value=np.array([levels])),
    "parameter": lambda levels: Before(value=nn.Parameter(torch.tensor(float(levels)))),
    "buffer": lambda levels: with_buffer(levels, persistent=True),
    "buffer not saved": lambda levels: with_buffer(levels, persistent=False),
    "hook": hooked,
    "local class": of_local_class,
    "own forward": with_own_forward,
    "module in a list": lambda levels: Before(value=[Before(rounding(levels))]),
}


@pytest.mark.parametrize("name", MODELS)
def test_equal_models_and_copies_are_described_equally_and_others_are_not(name: str) -> None:
    make = MODELS[name]
    model = make(255)
    description = described(model)
    assert description
    assert described(make(255)) == description
    assert described(copy.deepcopy(model)) == description
    assert described(fresh(Origin(model), 0)) == description
    assert described(make(254)) != description


def first(x: Tensor) -> Tensor:
    return helper(x)


def helper(x: Tensor) -> Tensor:
    return x + 0


def test_global_functions_that_a_function_uses_are_described(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = described(Before(first))
    monkeypatch.setitem(globals(), "helper", rounding(255))
    after = described(Before(first))
    assert before
    assert after
    assert before != after


def test_functions_with_other_code_are_described_differently() -> None:
    assert described(Before(lambda x: x * 2)) != described(Before(lambda x: x / 2))
    assert described(Before(torch.relu)) != described(Before(torch.tanh))
    assert described(Before(torch.relu)) == described(Before(torch.relu))


@pytest.mark.parametrize(
    "value", [Lock(), torch.Generator(), (each for each in ()), np.array([Lock()])]
)
def test_model_with_a_value_that_nothing_represents_has_no_description(value: Any) -> None:
    assert described(Before(value=value)) is None


class Counting(Before):
    """A model that counts its calls and keeps its last logits."""

    def forward(self, x: Tensor) -> Tensor:
        self.value = 1 if self.value is None else self.value + 1
        self.last = super().forward(x)
        return self.last


def queried(model: Callable[[Tensor], Tensor]) -> Description | None:
    before = described(model)
    model(small_images(2))
    return unchanged(before, described(model))


def test_data_that_a_query_changes_is_left_out() -> None:
    model = Counting(rounding(255))
    description = queried(model)
    assert description
    model(small_images(3))
    assert queried(model) == description
    assert queried(Counting(rounding(255))) == description
    assert queried(Counting(rounding(254))) != description


def test_model_whose_functions_change_in_a_query_has_no_description() -> None:
    calls = [0]

    def change(x: Tensor) -> Tensor:
        calls[0] += 1
        return x

    assert described(Before(change))
    assert queried(Before(change)) is None
    assert unchanged(None, described(linear())) is None
