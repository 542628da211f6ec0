"""The training losses, compared with the same computations written out."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dent.threat import ThreatModel
from dent.training import named
from dent.training.losses import _projected_steps, batch_statistics, training_loss
from tests.small_models import make_tiny_cnn


@pytest.fixture
def model() -> nn.Module:
    return make_tiny_cnn().train()


@pytest.fixture
def batch(images: Tensor) -> tuple[Tensor, Tensor]:
    return images[:8], torch.arange(8)


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


Seen = list[Tensor]


@pytest.fixture
def seen(model: nn.Module) -> Seen:
    """Record the batches that update running statistics: those that the model is trained on."""
    found: Seen = []

    def look(_: nn.Module, inputs: tuple[Tensor]) -> None:
        norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        if norm.training and norm.track_running_stats:
            found.append(inputs[0].detach().clone())

    model.register_forward_pre_hook(look)
    return found


def test_the_nominal_loss_is_cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    loss, correct = training_loss(model, x, y, named("nominal"))
    logits = model(x)
    torch.testing.assert_close(loss, F.cross_entropy(logits, y))
    assert int(correct) == int((logits.argmax(1) == y).sum())


def test_the_fast_loss_matches_the_n_fgsm_algorithm_of_the_paper(
    model: nn.Module, batch: tuple[Tensor, Tensor], seen: Seen
) -> None:
    x, y = batch
    eps = 8 / 255
    torch.manual_seed(5)
    loss, _ = training_loss(model, x, y, named("fast", "linf"))
    torch.manual_seed(5)
    # de Jorge et al. 2022: noise of two eps, one step of eps from there, no projection.
    start = (x + 2 * eps * (2 * torch.rand(8, x[0].numel()) - 1).reshape(x.shape)).clamp(0, 1)
    leaf = start.clone().requires_grad_()
    with batch_statistics(model):
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    expected = (start + eps * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(seen[0], expected)
    assert (seen[0] - x).abs().max() > eps  # not projected
    torch.testing.assert_close(loss, F.cross_entropy(model(expected), y))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", ["adversarial", "trades"])
def test_inner_attacks_stay_in_the_threat_model_and_increase_the_loss(
    model: nn.Module, batch: tuple[Tensor, Tensor], seen: Seen, norm: str, method: str
) -> None:
    x, y = batch
    recipe = named(method, norm)
    loss, _ = training_loss(model, x, y, recipe)
    assert recipe.threat is not None
    perturbed = seen[-1]
    assert not recipe.threat.check(perturbed, x).any()
    assert recipe.threat.distance(perturbed, x).max() > 0.5 * recipe.threat.eps
    natural, _ = training_loss(model, x, y, named("nominal"))
    assert loss > natural


def test_the_trades_loss_is_the_natural_loss_plus_beta_times_the_divergence(
    model: nn.Module, batch: tuple[Tensor, Tensor], seen: Seen
) -> None:
    x, y = batch
    loss, _ = training_loss(model, x, y, named("trades", beta=3.0))
    natural, perturbed = seen
    assert torch.equal(natural, x)
    p, q = model(natural).softmax(1), model(perturbed).softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(loss, F.cross_entropy(model(x), y) + 3.0 * divergence)


def test_the_trades_attack_runs_the_model_in_eval_mode(
    model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    modes: list[bool] = []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    training_loss(model, *batch, named("trades", steps=2))
    assert modes == [False, False, False, True, True]
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("recipe", ["nominal", "fast-linf", "adversarial-linf", "trades-linf"])
def test_every_parameter_gets_a_gradient_under_autocast(
    model: nn.Module, batch: tuple[Tensor, Tensor], recipe: str
) -> None:
    """Some versions of torch cast a weight under no_grad once, and then train without it."""
    recorded: list[bool] = []
    model.register_forward_pre_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = training_loss(model, *batch, named(recipe))
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(recorded)


@pytest.mark.parametrize("recipe", ["fast-linf", "fast-l2", "adversarial-linf"])
def test_only_the_images_of_the_loss_update_the_running_statistics(
    model: nn.Module, batch: tuple[Tensor, Tensor], seen: Seen, recipe: str
) -> None:
    training_loss(model, *batch, named(recipe))
    after = statistics(model)
    assert len(seen) == 1
    twin = make_tiny_cnn().train()
    twin.load_state_dict({**model.state_dict(), **{
        name: torch.zeros_like(b) if name.endswith("mean") or "num" in name else torch.ones_like(b)
        for name, b in after.items()
    }})  # fmt: skip
    twin(seen[0])
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(buffer, after[name])


def test_running_statistics_are_tracked_again_after_an_error(model: nn.Module) -> None:
    with pytest.raises(RuntimeError), batch_statistics(model):
        raise RuntimeError
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("training", [False, True])
def test_instance_norm_keeps_its_running_statistics_and_its_output(training: bool) -> None:
    norm = nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
    norm(torch.rand(4, 3, 5, 5))
    norm.train(training)
    before, x = statistics(norm), torch.rand(4, 3, 5, 5)
    with batch_statistics(norm):
        output = norm(x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
    assert list(dict(norm.named_buffers())) == list(before)
    torch.testing.assert_close(output, norm(x))
    if training:
        assert not torch.equal(norm.get_buffer("running_mean"), before["running_mean"])


@given(scale=st.floats(0.1, 20), seed=st.integers(0, 100))
def test_projected_steps_stay_in_the_threat_model(scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    recipe = named("adversarial", step_size=f"{scale}/255", steps=3)
    threat = ThreatModel("linf", "8/255")
    assert not threat.check(_projected_steps(model, x, y, recipe, threat), x).any()
