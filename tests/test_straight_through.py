"""Tests of values with the gradient of others, where these are much larger."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent.attacks.adaptive import Majority, Rung
from dent.defenses.tta import TestTimeAdaptation
from dent.support.straight_through import exactly, straight_through
from tests.attacks.attack_toys import Toy, linear, small_images


def gradient(values: Tensor, base: Tensor) -> Tensor:
    (found,) = torch.autograd.grad((values * torch.arange(4.0)).sum(), base)
    return found


def test_ordinary_values_keep_the_bits_of_the_plain_sum() -> None:
    values = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    base = values.flip(0).clone().requires_grad_()
    plain = base + (values - base).detach()
    assert not torch.equal(plain, values)
    assert torch.equal(straight_through(values, base), plain)


@pytest.mark.parametrize("scale", [1e6, 1e8, 1e30, float("inf")])
def test_values_are_exact_beside_a_much_larger_base(scale: float) -> None:
    values = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    base = (values.flip(0) * torch.tensor([scale, 1.0, scale, 1.0, scale])[:, None]).clone()
    base.requires_grad_()
    result = straight_through(values, base)
    assert torch.equal(result[::2], values[::2])
    assert torch.equal(result[1::2], (base + (values - base).detach())[1::2])
    if scale < torch.inf:
        assert torch.equal(gradient(result, base), torch.arange(4.0).expand(5, 4))
    assert torch.equal(exactly(values, base), values)


def test_row_without_a_prediction_stays_without_one() -> None:
    values = torch.tensor([[torch.nan, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    base = torch.full((2, 4), 1e9)
    assert straight_through(values, base).isfinite().all(1).tolist() == [False, True]


class Loud(Toy):
    """A defense whose static model has much larger logits."""

    def static(self, x: Tensor) -> Tensor:
        return 1e8 * super().static(x)

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return super().predict(x, adaptation).log_softmax(1)


def test_bpda_predicts_what_a_defense_with_a_loud_static_model_predicts() -> None:
    defense, x = Loud(linear()), small_images()
    assert torch.equal(Rung("bpda").view(defense)(x), defense(x))


class Scaled(Toy):
    """A defense with very large logits."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return 1e10 * super().predict(x, adaptation)


def test_majority_of_very_large_logits_counts_votes() -> None:
    defense, x = Scaled(linear()), small_images()
    votes = Majority(defense, 3)(x)
    assert torch.equal(votes.argmax(1), defense(x).argmax(1))
    assert torch.equal(votes.amax(1), torch.full((5,), 3.5))


class Method(nn.Module):
    """A test-time adaptation method that predicts in log-probabilities of quieter logits."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(linear(), Times(1e8)).eval()

    def forward(self, x: Tensor) -> Tensor:
        return (self.model(x) / 1e8).log_softmax(1)

    def reset(self) -> None:
        """Keep everything."""


class Times(nn.Module):
    """A factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_test_time_adaptation_with_a_gradient_predicts_what_a_quieter_method_predicts() -> None:
    method, x = Method(), small_images()
    defense = TestTimeAdaptation(method, linear())
    adaptation = defense.adapt(x)
    logits = defense.predict(x.clone().requires_grad_(), adaptation)
    assert logits.requires_grad
    assert torch.equal(logits.detach(), method(x))
