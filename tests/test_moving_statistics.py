"""Moving statistics against the paper's Listing 1, implemented with torch's train mode."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dent import ConfigError, Dent, DentConfig, Status, UnsupportedModelError
from dent.defenses import describe


def make_model(*, affine: bool = True, momentum: float | None = 0.1) -> nn.Sequential:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.BatchNorm2d(6, affine=affine, momentum=momentum),
        nn.Tanh(),
        nn.Conv2d(6, 5, 3),
        nn.BatchNorm2d(5),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(45, 4),
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.7, generator=generator)
        for layer in (model[1], model[4]):
            layer.running_mean.normal_(0, 0.3, generator=generator)
            layer.running_var.uniform_(0.3, 2, generator=generator)
            layer.num_batches_tracked.fill_(7)
    return model.eval()


def images(count: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.rand(count, 3, 12, 12, dtype=torch.float64, generator=generator)


def listing_1(model: nn.Sequential, x: Tensor, steps: int, lr: float) -> tuple[Tensor, nn.Module]:
    """Oracle: the paper's Listing 1 on a copy; return the logits and the adapted copy."""
    model = copy.deepcopy(model)
    layers = [layer for layer in model if isinstance(layer, nn.BatchNorm2d)]
    parameters = [p for layer in layers for p in layer.parameters()]
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(parameters, lr=lr)
    model.train()
    for _ in range(steps):
        log = model(x).log_softmax(1)
        loss = -(log.exp() * log).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return model(x), model


def config(steps: int = 4, **changes: Any) -> DentConfig:
    return DentConfig(steps=steps, lr=0.05, statistics="moving", **changes)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("changes", [{}, {"momentum": None}, {"momentum": 0.3}, {"affine": False}])
def test_moving_statistics_equal_the_papers_listing_1(steps: int, changes: dict[str, Any]) -> None:
    model, x = make_model(**changes), images()
    expected, adapted = listing_1(model, x, steps, 0.05)
    defense = Dent(model, config(steps))
    adaptation = defense.adapt(x)
    torch.testing.assert_close(defense.predict(x, adaptation), expected, rtol=0, atol=1e-9)
    buffers = dict(adapted.named_buffers())
    assert len(adaptation.statistics) == 4
    for name, value in adaptation.statistics.items():
        torch.testing.assert_close(value, buffers[name], rtol=0, atol=1e-12)
    assert defense.batch_dependent
    assert not torch.allclose(expected, model(x))
    for other in ("train", "test"):
        alternative = DentConfig.from_dict({"steps": steps, "lr": 0.05, "statistics": other})
        assert not torch.allclose(Dent(model, alternative)(x), expected)


def test_a_batch_changes_neither_the_model_nor_later_results() -> None:
    model, x = make_model(), images()
    before = copy.deepcopy(model.state_dict())
    defense = Dent(model, config())
    first = defense(x)
    assert torch.equal(defense(x), first)
    defense(images(3))
    assert torch.equal(defense(x), first)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_without_steps_the_defense_is_the_static_model() -> None:
    model, x = make_model(), images()
    defense = Dent(model, config(0))
    torch.testing.assert_close(defense(x), model(x))
    assert not defense.batch_dependent
    assert describe(defense)["name"] == "static"


def by_differences(answer: Callable[[Tensor], Tensor], x: Tensor, along: Tensor) -> Tensor:
    step = 1e-6
    return (answer(x + step * along) - answer(x - step * along)) / (2 * step)


@pytest.mark.parametrize("granularity", ["batch", "sample"])
@pytest.mark.parametrize("how", [{}, {"checkpointed": True}])
def test_exact_gradient_includes_the_moving_statistics(
    granularity: Any, how: dict[str, Any]
) -> None:
    model, x = make_model(), images(4)
    defense = Dent(model, config(3, granularity=granularity))

    def answer(x: Tensor) -> Tensor:
        return defense(x).square().sum()

    leaf = x.clone().requires_grad_()
    adaptation = defense.adapt(leaf, differentiable=True, **how)
    logits = defense.predict(leaf, adaptation)
    torch.testing.assert_close(logits.detach(), defense(x))
    (gradient,) = torch.autograd.grad(logits.square().sum(), leaf)
    along = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5))
    expected = by_differences(answer, x, along)
    torch.testing.assert_close((gradient * along).sum(), expected, rtol=1e-5, atol=1e-7)
    stale = x.clone().requires_grad_()
    (constant,) = torch.autograd.grad(answer(stale), stale)
    assert not torch.allclose(constant, gradient, rtol=1e-3)


def test_sample_wise_parameters_share_the_moving_statistics() -> None:
    model, x = make_model(), images()
    adaptation = Dent(model, config(granularity="sample", reduction="sum")).adapt(x)
    assert adaptation.parameters["1.weight"].shape == (8, 6)
    assert adaptation.statistics["1.running_mean"].shape == (6,)


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_a_batch_that_overflows_gets_the_logits_of_the_static_model(granularity: Any) -> None:
    model, x = make_model(), images()
    x[2] = 1.7e308
    x[2, :, ::2] *= -1
    defense = Dent(model, config(granularity=granularity))
    adaptation = defense.adapt(x)
    assert not bool((adaptation.status == Status.ADAPTED).any())
    others = torch.arange(8) != 2
    torch.testing.assert_close(defense.predict(x, adaptation)[others], model(x)[others])


def test_a_reverted_step_does_not_move_the_statistics() -> None:
    model, x = make_model(), images()
    x = 100 * x  # so that a gradient is above 1
    overflowing = {"steps": 1, "lr": 1.7e308, "optimizer": "sgd", "reduction": "sum"}
    defense = Dent(model, DentConfig.from_dict({**overflowing, "statistics": "moving"}))
    adaptation = defense.adapt(x)
    assert not bool((adaptation.status == Status.ADAPTED).any())
    torch.testing.assert_close(defense.predict(x, adaptation), model(x))


def test_a_non_finite_row_does_not_affect_the_statistics() -> None:
    model, x = make_model(), images()
    bad = x.clone()
    bad[2, 0, 0, 0] = torch.nan
    kept = torch.arange(8) != 2
    defense = Dent(model, config())
    torch.testing.assert_close(defense(bad)[kept], defense(x[kept]))


@pytest.mark.parametrize("beside", ["views", "last_layers"])
def test_moving_statistics_with_views_or_last_layers_are_refused(beside: str) -> None:
    value = {"count": 2} if beside == "views" else 1
    with pytest.raises(ConfigError, match=f"{beside} is set"):
        DentConfig.from_dict({"statistics": "moving", beside: value})


def test_layers_other_than_batch_norm_with_running_statistics_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="BatchNorm alone"):
        Dent(nn.Sequential(nn.InstanceNorm1d(3, affine=True, track_running_stats=True)), config())
    without = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(UnsupportedModelError, match="no running statistics"):
        Dent(without, config())


class Activated(nn.BatchNorm2d):
    """Applies an activation after normalizing, as timm's BatchNormAct2d does."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input).tanh()


class Handmade(nn.BatchNorm2d):
    """Normalizes by its own tensor arithmetic."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        shape = (1, -1, 1, 1)
        scale = self.weight / (self.running_var + self.eps).sqrt()  # type: ignore[operator]
        return (input - self.running_mean.view(shape)) * scale.view(shape) + self.bias.view(shape)  # type: ignore[union-attr]


def replaced(kind: type[nn.BatchNorm2d]) -> nn.Sequential:
    """Return the model with layers of that kind and without its activations."""
    model = make_model()
    for index in (1, 4):
        layer = kind(model[index].num_features)
        layer.load_state_dict(model[index].state_dict())
        model[index], model[index + 1] = layer.double(), nn.Identity()
    return model.eval()


def test_operations_of_a_subclass_after_normalizing_are_kept() -> None:
    for steps in (1, 3):
        expected, _ = listing_1(replaced(Activated), images(), steps, 0.05)
        config = DentConfig(steps=steps, lr=0.05, statistics="moving")
        torch.testing.assert_close(Dent(replaced(Activated), config)(images()), expected)


def test_a_batch_norm_subclass_with_its_own_arithmetic_is_refused() -> None:
    defense = Dent(replaced(Handmade), DentConfig(steps=1, lr=0.05, statistics="moving"))
    with pytest.raises(UnsupportedModelError, match=r"The layer 1 \(Handmade\) does not call"):
        defense(images())


class Part(nn.Module):
    """A model whose body runs `times` times, and in parts again in every backward pass."""

    def __init__(self, *, recomputes: bool, times: int = 1) -> None:
        super().__init__()
        model = make_model()
        self.first, self.norm, self.rest = model[0], model[1], model[2:]
        self.recomputes, self.times = recomputes, times

    def body(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        for _ in range(self.times):
            hidden = self.norm(hidden).tanh()
        return hidden

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.body, x, use_reentrant=False) if self.recomputes else self.body(x)
        return self.rest(hidden)  # type: ignore[no-any-return]


@pytest.mark.parametrize("times", [1, 2])
def test_activation_checkpointing_does_not_move_the_statistics_twice(times: int) -> None:
    x = images()
    plain, again = (
        Dent(Part(recomputes=recomputes, times=times).eval(), config())
        for recomputes in (False, True)
    )
    assert torch.equal(again(x), plain(x))
    expected = plain.adapt(x).statistics
    assert expected
    for name, value in again.adapt(x).statistics.items():
        assert torch.equal(value, expected[name])


def test_a_layer_that_runs_twice_moves_its_statistics_twice() -> None:
    model, x = Part(recomputes=False, times=2).eval(), images()
    moved = Dent(model, config(steps=1)).adapt(x).statistics["norm.running_mean"]
    twice = copy.deepcopy(model).train()
    twice(x)
    torch.testing.assert_close(moved, twice.norm.running_mean)
