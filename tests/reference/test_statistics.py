"""Tests of defenses that use test statistics, and of smoothing."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from dent import ConfigError, UnsupportedModelError
from dent.defenses import MeanSparse, MedBN, StatisticsPrior, make


def test_statistics_only_matches_batch_norm_in_train_mode(
    small: nn.Sequential, batch: Tensor
) -> None:
    expected = copy.deepcopy(small)
    for layer in expected.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
            layer.momentum = 0.0
    logits = make("statistics-only", small)(batch)
    torch.testing.assert_close(logits, expected(batch))
    assert not torch.allclose(logits, small(batch))


def test_prior_of_strength_zero_matches_statistics_only(
    small: nn.Sequential, batch: Tensor
) -> None:
    logits = StatisticsPrior(small, strength=0)(batch)
    torch.testing.assert_close(logits, make("statistics-only", small)(batch))


def test_prior_of_very_large_strength_matches_the_static_model(
    small: nn.Sequential, batch: Tensor
) -> None:
    torch.testing.assert_close(StatisticsPrior(small, strength=1e14)(batch), small(batch))


def test_prior_matches_its_formula() -> None:
    norm = nn.BatchNorm1d(3).double()
    running_mean = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    running_var = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    norm.running_mean, norm.running_var = running_mean, running_var
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.0, 0.5, 1.0]))
    x = torch.tensor([[0.0, 1.0, 5.0], [2.0, 5.0, 7.0]], dtype=torch.float64)
    mean = 6 / 8 * running_mean + 2 / 8 * torch.tensor([1.0, 3.0, 6.0])
    variance = 6 / 8 * running_var + 2 / 8 * torch.tensor([1.0, 4.0, 1.0])
    expected = (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(StatisticsPrior(norm.eval(), strength=6)(x), expected)


def test_prior_has_the_exact_gradient(small: nn.Sequential, batch: Tensor) -> None:
    defense = StatisticsPrior(small, strength=2)
    assert torch.autograd.gradcheck(defense, batch[:2].clone().requires_grad_())


def test_med_bn_matches_its_formula() -> None:
    norm = nn.BatchNorm2d(2).double().eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([3.0, -1.0]))
        norm.bias.copy_(torch.tensor([0.5, 1.0]))
    first = [[[0.0, 1.0, 9.0]], [[5.0, 5.0, 2.0]]]
    second = [[[4.0, 2.0, 3.0]], [[5.0, 7.0, 0.0]]]
    x = torch.tensor([first, second], dtype=torch.float64)
    # The lower median of 0 1 2 3 4 9 is 2, of 0 2 5 5 5 7 is 5. The sums are squared deviations.
    scale = [(s / 6 + norm.eps) ** -0.5 for s in (4 + 1 + 0 + 1 + 4 + 49, 25 + 9 + 0 + 0 + 0 + 4)]
    one = (x[:, 0] - 2) * scale[0] * 3 + 0.5
    two = (x[:, 1] - 5) * scale[1] * -1 + 1
    logits = MedBN(nn.Sequential(norm, nn.Flatten()))(x)
    torch.testing.assert_close(logits, torch.stack([one, two], dim=1).flatten(1))


def test_med_bn_has_the_exact_gradient(small: nn.Sequential, batch: Tensor) -> None:
    assert torch.autograd.gradcheck(MedBN(small), batch[:3].clone().requires_grad_())


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf"), "16", True])
def test_invalid_strength_is_refused(strength: float, small: nn.Sequential) -> None:
    with pytest.raises(ConfigError, match="strength"):
        StatisticsPrior(small, strength=strength)


def test_model_without_running_statistics_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="no layer of Linear keeps any"):
        StatisticsPrior(nn.Linear(2, 2))
    with pytest.raises(UnsupportedModelError, match="no layer of Linear keeps any"):
        MedBN(nn.Linear(2, 2))


def test_smoothing_is_batch_independent_and_keeps_logits_of_flat_images(
    images: Tensor, tiny_cnn: nn.Module
) -> None:
    defense = make("smoothing", tiny_cnn)
    flat = torch.full_like(images, 0.5)
    torch.testing.assert_close(defense(flat), tiny_cnn(flat))
    torch.testing.assert_close(defense(images)[:3], defense(images[:3]))
    assert not torch.allclose(defense(images), tiny_cnn(images))


class Direct(nn.BatchNorm2d):
    """A BatchNorm layer that calls PyTorch's operation directly."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return torch.batch_norm(
            input,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            False,
            0.0,
            self.eps,
            False,
        )


def with_norm(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(64, 2)).eval()


@pytest.mark.parametrize("defense", [MedBN, StatisticsPrior])
def test_model_with_only_instance_norm_is_refused(defense: type[MedBN | StatisticsPrior]) -> None:
    model = with_norm(nn.InstanceNorm2d(4, affine=True, track_running_stats=True))
    with pytest.raises(UnsupportedModelError, match="keeps any, only InstanceNorm: the defense"):
        defense(model)


@pytest.mark.parametrize("defense", [MedBN, StatisticsPrior])
def test_model_that_does_not_call_the_function_batch_norm_is_refused(
    defense: type[MedBN | StatisticsPrior],
) -> None:
    refused = defense(with_norm(Direct(4)))
    with pytest.raises(UnsupportedModelError, match="Sequential does not call that"):
        refused(torch.rand(2, 3, 6, 6))


class Checkpointed(nn.Module):
    """Runs a model again in every backward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.model, x, use_reentrant=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [MedBN, StatisticsPrior, MeanSparse])
def test_a_gradient_through_activation_checkpointing_is_refused(
    kind: type[MedBN | StatisticsPrior | MeanSparse], small: nn.Sequential, batch: Tensor
) -> None:
    plain, again = kind(small), kind(Checkpointed(small))
    assert torch.equal(again(batch), plain(batch))
    with torch.no_grad():
        assert torch.equal(again(batch.clone().requires_grad_()), plain(batch))
    with pytest.raises(UnsupportedModelError, match="set_grad_checkpointing"):
        again(batch.clone().requires_grad_())
    assert plain(batch.clone().requires_grad_()).requires_grad


REFUSES = "fail_if_non_empty" in str(torch._C._autograd._saved_tensors_hooks_disable.__doc__)


@pytest.mark.skipif(not REFUSES, reason="this PyTorch cannot refuse hooks under other hooks")
@pytest.mark.parametrize("kind", [MedBN, StatisticsPrior, MeanSparse])
def test_a_gradient_through_activation_checkpointing_is_refused_under_hooks_of_the_caller(
    kind: type[MedBN | StatisticsPrior | MeanSparse], small: nn.Sequential, batch: Tensor
) -> None:
    again = kind(Checkpointed(small))
    x = batch.clone().requires_grad_()
    with save_on_cpu():
        with pytest.raises(UnsupportedModelError, match="set_grad_checkpointing"):
            again(x)
        with save_on_cpu():  # hooks are allowed again
            Checkpointed(small)(x).sum().backward()
    with pytest.raises(UnsupportedModelError, match="set_grad_checkpointing"):
        checkpoint(again, x, use_reentrant=False)


def test_hooks_of_the_caller_on_saved_tensors_are_kept(small: nn.Sequential, batch: Tensor) -> None:
    gradients = []
    for hooks in (nullcontext(), save_on_cpu()):
        x = batch.clone().requires_grad_()
        with hooks:
            logits = MedBN(small)(x)
        gradients += torch.autograd.grad(logits.square().sum(), x)
    assert torch.equal(*gradients)
