"""Tests of online tent: against torch.optim on a copy of the model, and of its state."""

import copy

import pytest
import torch
from torch import Tensor, nn

from dent import (
    ConfigError,
    DentConfig,
    SmoothingConfig,
    Status,
    UnsupportedModelError,
    ViewsConfig,
)
from dent.defenses import TENT, TentOnline


def published(model: nn.Module, batches: list[Tensor], steps: int, momentum: bool) -> list[Tensor]:
    """Return the logits of the published method, from before each step: the oracle."""
    model = copy.deepcopy(model).eval()
    parameters = []
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = None
            parameters += [layer.weight, layer.bias]
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        if momentum
        else torch.optim.Adam(parameters, lr=0.05)
    )
    answers = []
    for x in batches:
        for _ in range(steps):
            logits = model(x)
            loss = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        answers.append(logits.detach())
    return answers


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_stream_of_batches_matches_a_loop_with_torch_optim(
    steps: int, optimizer: str, small: nn.Sequential, batch: Tensor
) -> None:
    batches = [batch, batch.flip(2).square(), 1 - batch]
    config = DentConfig.from_dict(
        {"steps": steps, "lr": 0.05, "optimizer": optimizer, "statistics": "test"}
    )
    tent = TentOnline(small, config)
    expected = published(small, batches, steps, optimizer == "sgd")
    for x, logits in zip(batches, expected, strict=True):
        torch.testing.assert_close(tent(x), logits)


def test_each_batch_changes_later_predictions_until_reset(
    small: nn.Sequential, batch: Tensor
) -> None:
    tent = TentOnline(small, DentConfig(steps=1, lr=0.05, statistics="test"))
    first = tent(batch)
    second = tent(batch)
    assert not torch.allclose(first, second)
    tent.reset()
    assert torch.equal(tent(batch), first)
    assert torch.equal(tent(batch), second)


def test_predictions_depend_on_the_order_of_batches(small: nn.Sequential, batch: Tensor) -> None:
    tent = TentOnline(small, DentConfig(steps=1, lr=0.05, statistics="test"))
    tent(1 - batch)
    after_another = tent(batch)
    tent.reset()
    assert not torch.allclose(tent(batch), after_another)


def test_restore_undoes_the_queries_after_a_snapshot(small: nn.Sequential, batch: Tensor) -> None:
    tent = TentOnline(small, DentConfig(steps=1, lr=0.05, statistics="test"))
    assert tent.snapshot() is None
    tent(batch)
    state = tent.snapshot()
    expected = tent(batch)
    for _ in range(3):
        tent(1 - batch)
    tent.restore(state)
    assert torch.equal(tent(batch), expected)
    assert not tent.state_dict().keys() - {f"classifier.model.{key}" for key in small.state_dict()}


def test_predict_does_not_change_the_state(small: nn.Sequential, batch: Tensor) -> None:
    tent = TentOnline(small)
    adaptation = tent.adapt(batch)
    state = tent.snapshot()
    tent.predict(batch, adaptation)
    assert tent.snapshot() is state


def test_non_finite_step_is_reverted_and_does_not_affect_the_next_batch(batch: Tensor) -> None:
    class Overflowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2).double()

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.norm(x).flatten(1)[:, :3]
            return scores * torch.where(x.flatten(1).sum(1, keepdim=True) < 0.1, torch.inf, 1.0)

    model = Overflowing().eval()
    tent = TentOnline(model)
    expected = tent(batch)
    tent.reset()
    broken = batch.clone()
    broken[1] = 0
    adaptation = tent.adapt(broken)
    reverted = [Status.REVERTED] * 5
    reverted[1] = Status.STEP_NON_FINITE
    assert adaptation.status.tolist() == reverted
    assert torch.equal(tent(batch), expected)


def test_batch_without_finite_rows_does_not_change_the_state(
    small: nn.Sequential, batch: Tensor
) -> None:
    tent = TentOnline(small)
    adaptation = tent.adapt(batch * torch.nan)
    assert adaptation.status.tolist() == [Status.INPUT_NON_FINITE] * 5
    assert bool(tent.predict(batch * torch.nan, adaptation).isnan().all())
    assert torch.equal(tent(batch), TentOnline(small)(batch))


def test_differentiable_gradient_matches_finite_differences(
    small: nn.Sequential, batch: Tensor
) -> None:
    config = DentConfig(steps=3, lr=0.3, optimizer="sgd", statistics="test")
    x = batch[:2].clone().requires_grad_()

    def answer(at: Tensor, *, differentiable: bool) -> Tensor:
        tent = TentOnline(small, config)
        adaptation = tent.adapt(at, differentiable=differentiable)
        state = tent.snapshot()
        assert state is not None
        assert not state.parameters.requires_grad
        return tent.predict(at, adaptation).square().sum()

    (exact,) = torch.autograd.grad(answer(x, differentiable=True), x)
    (stopped,) = torch.autograd.grad(answer(x, differentiable=False), x)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    with torch.no_grad():
        ahead = answer(x + 1e-6 * direction, differentiable=False)
        behind = answer(x - 1e-6 * direction, differentiable=False)
    slope = (ahead - behind) / 2e-6
    torch.testing.assert_close((exact * direction).sum(), slope, atol=1e-6, rtol=1e-5)
    assert not torch.isclose((stopped * direction).sum(), slope, rtol=1e-2)


@pytest.mark.parametrize(
    "config",
    [
        DentConfig(granularity="sample"),
        DentConfig(steps=0),
        DentConfig(smoothing=SmoothingConfig(sigma=0.5)),
        DentConfig(views=ViewsConfig()),
        DentConfig(statistics="moving"),
        DentConfig(adapt_affine=False, smoothing=SmoothingConfig(sigma=0.5)),
    ],
)
def test_configuration_that_tent_does_not_support_is_refused(
    config: DentConfig, small: nn.Sequential
) -> None:
    with pytest.raises(ConfigError, match="tent-online needs"):
        TentOnline(small, config)


def test_model_without_normalization_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="normalization"):
        TentOnline(nn.Linear(2, 2))


def test_default_configuration_is_that_of_the_authors() -> None:
    assert (TENT.steps, TENT.lr, TENT.optimizer) == (1, 1e-3, "adam")
    assert (TENT.objective, TENT.statistics) == ("entropy", "test")
