"""Tests of the wrapper for test-time adaptation methods, with tent as its authors publish it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from dent import ConfigError, UnsupportedModelError
from dent.attacks import is_batch_dependent
from dent.defenses import TestTimeAdaptation, describe
from dent.evaluation.submission.stream import is_stream


class PublishedTent(nn.Module):
    """Tent as its authors publish it: the module keeps model, optimizer and initial state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.train().requires_grad_(requires_grad=False)
        parameters = []
        for layer in model.modules():
            if isinstance(layer, nn.Dropout):
                layer.eval()
            if isinstance(layer, nn.BatchNorm2d):
                layer.requires_grad_(requires_grad=True)
                layer.track_running_stats = False
                layer.running_mean = layer.running_var = None
                parameters += [layer.weight, layer.bias]
        self.optimizer = torch.optim.Adam(parameters, lr=0.05)
        self.begin = copy.deepcopy(self.model.state_dict())
        self.begin_optimizer = copy.deepcopy(self.optimizer.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        loss = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return logits

    def reset(self) -> None:
        self.model.load_state_dict(self.begin, strict=True)
        self.optimizer.load_state_dict(self.begin_optimizer)


@pytest.fixture
def defense(small: nn.Sequential) -> TestTimeAdaptation:
    return TestTimeAdaptation(PublishedTent(copy.deepcopy(small)), small)


def test_logits_on_a_stream_are_those_of_the_wrapped_method(
    defense: TestTimeAdaptation, small: nn.Sequential, batch: Tensor
) -> None:
    method = PublishedTent(copy.deepcopy(small))
    before = copy.deepcopy(small.state_dict())
    for x in (batch, 1 - batch, batch.flip(2), batch):
        with torch.no_grad():  # as in evaluations
            answer = defense(x)
        assert torch.equal(answer, method(x).detach())
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_reset_and_restore_are_exact(defense: TestTimeAdaptation, batch: Tensor) -> None:
    first = defense(batch)
    state = defense.snapshot()
    second = defense(batch)
    assert not torch.equal(first, second)
    defense(1 - batch)
    defense.restore(state)
    assert torch.equal(defense(batch), second)
    defense.restore(state)  # the state can be restored again
    assert torch.equal(defense(batch), second)
    defense.reset()
    assert torch.equal(defense(batch), first)


def test_gradient_is_that_of_the_methods_model_after_the_batch(
    defense: TestTimeAdaptation, batch: Tensor
) -> None:
    adaptation = defense.adapt(batch)
    leaf = batch.clone().requires_grad_()
    answer = defense.predict(leaf, adaptation)
    assert torch.equal(answer.detach(), adaptation.logits)
    (gradient,) = torch.autograd.grad(answer[:, 0].sum(), leaf)
    left = copy.deepcopy(defense.method.model)
    again = batch.clone().requires_grad_()
    (expected,) = torch.autograd.grad(left(again)[:, 0].sum(), again)
    torch.testing.assert_close(gradient, expected)
    assert float(gradient.abs().max()) > 0


def test_eval_does_not_change_the_mode_of_the_method(
    defense: TestTimeAdaptation, batch: Tensor
) -> None:
    assert defense.eval().method.model.training
    assert not torch.equal(defense(batch), defense(batch))


def test_wrapper_is_a_stream_and_its_description_names_the_method(
    defense: TestTimeAdaptation,
) -> None:
    assert is_stream(defense)
    assert is_batch_dependent(defense)
    described = describe(defense)
    assert described["stateful"] is True
    assert described["settings"]["method"].endswith("PublishedTent")


def test_unsupported_methods_and_models_in_training_mode_are_refused(small: nn.Sequential) -> None:
    with pytest.raises(UnsupportedModelError, match="without reset, model"):
        TestTimeAdaptation(nn.Linear(2, 2), small)
    shared = copy.deepcopy(small)
    with pytest.raises(UnsupportedModelError, match="eval mode"):
        TestTimeAdaptation(PublishedTent(shared), shared)


def test_given_settings_are_recorded_and_distinguish_two_defenses(small: nn.Sequential) -> None:
    method = PublishedTent(copy.deepcopy(small))
    kind = describe(TestTimeAdaptation(method, small))["settings"]
    slow, fast = (
        describe(TestTimeAdaptation(method, small, settings={"lr": rate})) for rate in (0.001, 10)
    )
    assert slow["settings"] == {**kind, "settings": {"lr": 0.001}}
    assert slow != fast
    assert list(kind) == ["method"]


@pytest.mark.parametrize("settings", [{"lr": torch.ones(1)}, {"lr": float("nan")}, 3])
def test_settings_that_are_not_plain_json_are_refused(
    small: nn.Sequential, settings: object
) -> None:
    method = PublishedTent(copy.deepcopy(small))
    with pytest.raises(ConfigError, match="takes settings as a dict of plain JSON types"):
        TestTimeAdaptation(method, small, settings=settings)  # type: ignore[arg-type]
