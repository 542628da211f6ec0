"""Models of every make: shared with the caller, never written to, or refused with a reason."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dent.config import DentConfig, SmoothingConfig
from dent.defense import Dent
from dent.errors import UnsupportedModelError
from tests.configurations import (
    BATCH,
    CONFIGS,
    SAMPLE,
    STATIC,
    STATISTICS_ONLY,
    TEST,
    Around,
)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def _head(norm: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    norms = [] if norm is None else [norm]
    return nn.Sequential(nn.Conv2d(3, 8, 3), *norms, nn.ReLU(), nn.Flatten(), nn.Linear(1568, 10))


def _replicate(module: nn.Module) -> nn.Module:
    """Replicate as torch.nn.parallel.replicate does: parameters become plain non-leaf tensors."""
    replica: nn.Module = module._replicate_for_data_parallel()
    vars(replica)["_former_parameters"] = {}
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else _replicate(child)
    for name, parameter in module._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            tensor = parameter.clone()
            setattr(replica, name, tensor)
            vars(replica)["_former_parameters"][name] = tensor
    for name, buffer in module._buffers.items():
        replica._buffers[name] = None if buffer is None else buffer.clone()
    return replica


def test_forward_hooks_fire_at_every_step_and_may_change_the_output(
    tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    fired: list[str] = []

    class Recorder:
        def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            fired.append("hook")
            return output + 1

    tiny_cnn.register_forward_hook(Recorder())
    tiny_cnn[1].register_forward_pre_hook(lambda *_: fired.append("pre"))
    defense = Dent(tiny_cnn, BATCH)
    adaptation = defense.adapt(x)
    assert fired == ["pre", "hook"] * BATCH.steps
    defense.predict(x, adaptation)
    assert fired == ["pre", "hook"] * (BATCH.steps + 1)
    with defense.disabled():
        torch.testing.assert_close(defense(x), tiny_cnn(x))


@pytest.mark.parametrize("config", CONFIGS)
def test_replicas_of_data_parallel_adapt(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense = Dent(tiny_cnn, config)
    assert torch.equal(_replicate(defense)(x), defense(x))


class _Scaled(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return value * 2


def _parametrized() -> nn.Module:
    model = _head(nn.BatchNorm2d(8))
    parametrize.register_parametrization(model[1], "weight", _Scaled())
    return model


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (_head, BATCH, r"Conv2d, Flatten, Linear, ReLU"),
        (lambda: _head(nn.BatchNorm2d(8, affine=False)), BATCH, r"\(BatchNorm2d\) have no scale"),
        (lambda: nn.DataParallel(_head(nn.BatchNorm2d(8))), BATCH, r"wrap its \.module"),
        (
            lambda: _head(nn.BatchNorm2d(8, track_running_stats=False)),
            BATCH,
            r"'1' \(BatchNorm2d\) keeps no running statistics.*statistics='test'",
        ),
        (lambda: _head(nn.LayerNorm([8, 14, 14])), STATISTICS_ONLY, "the static model"),
        (_parametrized, BATCH, "parametrization"),
        (
            lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.BatchNorm2d(8)),
            BATCH,
            "not initialized yet",
        ),
        (lambda: len, BATCH, "torch.nn.Module"),
    ],
    ids=[
        "no-norm",
        "no-affine",
        "data-parallel",
        "no-running-statistics",
        "statistics-only-layer-norm",
        "parametrized",
        "lazy",
        "function",
    ],
)
def test_it_refuses_models_it_cannot_adapt(
    model: Callable[[], nn.Module], config: DentConfig, message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Dent(model(), config)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(8, track_running_stats=False), nn.GroupNorm(2, 8)]
)
def test_layers_without_running_statistics_adapt_under_test_statistics(
    layer: nn.Module, x: Tensor
) -> None:
    assert Dent(_head(layer), TEST)(x).isfinite().all()


def test_a_model_without_norm_layers_can_learn_smoothing(x: Tensor) -> None:
    config = DentConfig(steps=2, adapt_affine=False, smoothing=SmoothingConfig(sigma=0.5))
    adaptation = Dent(_head(), config).adapt(x)
    assert not adaptation.parameters
    assert adaptation.sigma is not None
    assert adaptation.sigma != 0.5


class _Pair(Around):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(x), x


class _NoGrad(Around):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits


class _InPlace(Around):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.mul_(2).sub_(1))
        return logits


@pytest.mark.parametrize("config", [BATCH, SAMPLE])
def test_it_refuses_models_that_do_not_return_logits_with_gradients(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    with pytest.raises(UnsupportedModelError, match="tuple"):
        Dent(_Pair(tiny_cnn), config)(x)
    with pytest.raises(UnsupportedModelError, match=r"torch\.no_grad"):
        Dent(_NoGrad(tiny_cnn), config)(x)


@pytest.mark.parametrize("config", [*CONFIGS, pytest.param(STATIC, id="static")])
def test_a_model_that_works_in_place_leaves_the_batch_as_it_is(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    config = replace(config, smoothing=None)
    defense, given = Dent(_InPlace(tiny_cnn), config), x.clone()
    logits = defense(x)
    assert torch.equal(x, given)
    assert torch.equal(logits, Dent(tiny_cnn, config)(x * 2 - 1))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(defense(x).sum(), x)
    assert torch.equal(x, given)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("config", [BATCH, SAMPLE])
def test_tied_parameters_adapt_as_one(config: DentConfig, x: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    ).eval()
    model[4].weight = model[1].weight
    defense = Dent(model, config)
    adaptation = defense.adapt(x)
    assert set(adaptation.parameters) == {"1.weight", "1.bias", "4.bias"}
    logits = defense.predict(x, adaptation)
    written = copy.deepcopy(model)
    assert written[4].weight is written[1].weight
    for name, value in adaptation.parameters.items():
        written.get_parameter(name).data.copy_(value[0] if adaptation.sample_wise else value)
    torch.testing.assert_close(logits[0], written(x)[0])


@pytest.mark.parametrize("config", CONFIGS)
def test_a_compiled_model_gives_what_it_gives_uncompiled(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    compiled = torch.compile(tiny_cnn, backend="eager")
    assert isinstance(compiled, nn.Module)
    defense = Dent(compiled, config)
    assert defense.unwrap() is compiled
    assert set(defense.adapt(x).parameters) == {"1.weight", "1.bias", "4.weight", "4.bias"}
    assert torch.equal(defense(x), Dent(tiny_cnn, config)(x))


@pytest.mark.parametrize("config", CONFIGS)
def test_the_logits_are_those_of_the_model_with_the_adapted_parameters(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    config = replace(config, smoothing=None, statistics="train")
    defense = Dent(tiny_cnn, config)
    adaptation = defense.adapt(x)
    logits = defense.predict(x, adaptation)
    for index in range(len(x)):
        model = copy.deepcopy(tiny_cnn)
        for name, value in adaptation.parameters.items():
            own = value[index] if adaptation.sample_wise else value
            model.get_parameter(name).data.copy_(own)
        torch.testing.assert_close(logits[index], model(x)[index])


@pytest.mark.parametrize("config", CONFIGS)
def test_copies_and_files_give_the_same_defense(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense = Dent(tiny_cnn, config)
    expected = defense(x)
    copied = copy.deepcopy(defense)
    assert torch.equal(copied(x), expected)
    pickled = pickle.loads(pickle.dumps(defense))  # noqa: S301
    assert pickled.config == config
    assert torch.equal(pickled(x), expected)
    for parameter in copied.parameters():
        nn.init.normal_(parameter)
    assert not torch.equal(copied(x), expected)
    copied.load_state_dict(defense.state_dict())
    assert torch.equal(copied(x), expected)
    assert set(defense.state_dict()) == {f"model.{name}" for name in tiny_cnn.state_dict()}


@pytest.mark.parametrize("config", CONFIGS)
def test_it_adapts_inference_tensors_outside_of_inference_mode(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    expected = Dent(tiny_cnn, config)(x)
    with torch.inference_mode():
        model, images = copy.deepcopy(tiny_cnn), x.clone()
        for module in model.modules():
            for key, value in module._parameters.items():
                if value is not None:
                    module._parameters[key] = nn.Parameter(value.clone())
    defense = Dent(model, config)
    adaptation = defense.adapt(images)
    with torch.no_grad():
        torch.testing.assert_close(defense.predict(images, adaptation), expected, rtol=0, atol=0)


@pytest.mark.parametrize("config", CONFIGS)
def test_it_moves_to_another_precision(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    config = replace(config, lr=1e-3)
    expected = Dent(copy.deepcopy(tiny_cnn), config)(x)
    defense = Dent(tiny_cnn, config).to(torch.float64)
    adaptation = defense.adapt(x.double())
    assert {value.dtype for value in adaptation.parameters.values()} == {torch.float64}
    logits = defense(x.double())
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits.float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS)
def test_half_precision_models_adapt_in_float32(
    config: DentConfig, dtype: torch.dtype, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    model, x = tiny_cnn.to(dtype), x.to(dtype)
    defense = Dent(model, config)
    adaptation = defense.adapt(x)
    for name, value in adaptation.parameters.items():
        trained = model.get_parameter(name)
        assert trained.dtype == dtype
        assert value.dtype == torch.float32
        assert not torch.equal(value, trained.float().expand_as(value))
    logits = defense.predict(x, adaptation)
    assert logits.dtype == dtype
    assert logits.isfinite().all()
