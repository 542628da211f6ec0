"""Many kinds of models can be adapted, and the caller's model is never written to."""

import copy
import pickle
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent.adaptation.adapted_model import AdaptedModel
from dent.config import DentConfig, SmoothingConfig
from dent.defenses.dent import Dent
from dent.errors import InputError, UnsupportedModelError
from tests import slow_dent
from tests.configurations import (
    BATCH,
    CONFIGS,
    LAST,
    SAMPLE,
    STATIC,
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
    defense.adapt(x)  # the first batch also compares the copy with the model
    fired.clear()
    adaptation = defense.adapt(x)
    assert fired == ["pre", "hook"] * BATCH.steps
    defense.predict(x, adaptation)
    assert fired == ["pre", "hook"] * (BATCH.steps + 1)
    with defense.disabled():
        torch.testing.assert_close(defense(x), tiny_cnn(x))


@pytest.mark.parametrize("config", CONFIGS)
def test_data_parallel_replica_gives_the_same_logits(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense = Dent(tiny_cnn, config)
    assert torch.equal(_replicate(defense)(x), defense(x))


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


class _InPlace(Around):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.mul_(2).sub_(1))
        return logits


@pytest.mark.parametrize("config", [*CONFIGS, pytest.param(STATIC, id="static")])
def test_a_model_with_in_place_operations_leaves_the_input_batch_unchanged(
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
def test_tied_parameters_are_adapted_as_one_parameter(config: DentConfig, x: Tensor) -> None:
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


class _ScaledAgain(Around):
    """Multiplies its logits by the scale of a layer inside it."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__(model)
        self.again = model[1].weight

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.again.mean()


def test_a_scale_used_outside_of_its_layer_is_adapted_there_too(x: Tensor) -> None:
    model = _ScaledAgain(_head(nn.BatchNorm2d(8))).eval()
    config = replace(BATCH, lr=0.05)
    expected = slow_dent.adapt_and_predict(model, config, x)
    torch.testing.assert_close(Dent(model, config)(x), expected.logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(UnsupportedModelError, match=r"scale or shift in \.mean.*batch-wise"):
        Dent(model, SAMPLE)(x)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_compiled_model_adapts_like_the_uncompiled_model(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    compiled = torch.compile(tiny_cnn, backend="eager")
    assert isinstance(compiled, nn.Module)
    defense = Dent(compiled, config)
    assert defense.unwrap() is compiled
    adapted = {"1.weight", "1.bias", "4.weight", "4.bias"}
    if config is LAST:
        adapted = {"4.weight", "4.bias"}
    assert set(defense.adapt(x).parameters) == adapted
    assert torch.equal(defense(x), Dent(tiny_cnn, config)(x))


@pytest.mark.parametrize("config", CONFIGS)
def test_logits_equal_those_of_the_model_with_the_adapted_parameters(
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
def test_copied_pickled_and_reloaded_defenses_give_the_same_logits(
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
def test_inference_tensors_adapt_outside_of_inference_mode(
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
def test_a_defense_can_be_moved_to_float64(
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


def test_adapted_model_shares_weights_but_not_buffers(tiny_cnn: nn.Sequential) -> None:
    own = AdaptedModel(tiny_cnn, BATCH)._module
    shared = {tensor.data_ptr() for tensor in tiny_cnn.parameters()}
    assert {tensor.data_ptr() for tensor in own.parameters()} <= shared
    assert not {b.data_ptr() for b in own.buffers()} & {b.data_ptr() for b in tiny_cnn.buffers()}
    assert not any(tensor.requires_grad for tensor in own.parameters())


def test_changing_the_models_weights_changes_the_defense(
    tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense = Dent(tiny_cnn, BATCH)
    before = defense(x)
    for name in ("0.weight", "1.weight", "1.running_var"):
        tiny_cnn.state_dict()[name].mul_(1.5)
        after = defense(x)
        assert not torch.equal(after, before)
        assert torch.equal(after, Dent(copy.deepcopy(tiny_cnn), BATCH)(x))
        before = after


class _Counting(Around):
    """Writes to a buffer and an attribute in every forward, even in eval mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.register_buffer("calls", torch.zeros(()))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        self.last = x
        return super().forward(x)


@pytest.mark.parametrize("config", CONFIGS)
def test_writes_of_a_forward_to_buffers_and_attributes_are_discarded(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    model = _Counting(tiny_cnn)
    defense = Dent(model, config)
    assert torch.equal(defense(x), Dent(tiny_cnn, config)(x))
    assert model.get_buffer("calls") == 0
    assert model.last is None


class _Tallying(Around):
    """Writes in place to tensors that are not in its state_dict."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.calls = torch.zeros(())
        self.kept = {"sums": [torch.zeros(())]}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.kept["sums"][0].add_(1)
        return super().forward(x)


@pytest.mark.parametrize("config", CONFIGS)
def test_writes_of_a_forward_to_plain_tensors_are_discarded(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    model = _Tallying(tiny_cnn)
    assert torch.equal(Dent(model, config)(x), Dent(tiny_cnn, config)(x))
    assert model.calls == 0
    assert model.kept["sums"] == [torch.zeros(())]


class _Remembering(Around):
    """Stores its output, with the autograd graph, in an attribute, a container and a buffer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.last: Tensor | None = None
        self.features: dict[str, tuple[Tensor, ...]] = {}
        self.register_buffer("average", torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        self.last, self.features["logits"] = logits, (logits,)
        self.average = 0.9 * self.average + logits.mean(0)
        return logits


@pytest.mark.parametrize("config", CONFIGS)
def test_a_model_that_stores_its_outputs_with_graphs_adapts_and_keeps_them(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    model = _Remembering(tiny_cnn).eval()
    before = Dent(model, config)
    model(x)  # with gradients, as in training or in an attack on the static model
    held, average = model.features["logits"][0], model.average
    for defense in (before, Dent(model, config)):
        assert torch.equal(defense(x), Dent(tiny_cnn, config)(x))
    assert model.features["logits"][0] is held
    assert model.last is held
    assert model.average is average


def test_hooks_that_cannot_be_copied_do_not_change_the_logits(
    tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    class Logger:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def log(self, *_: Any, **__: Any) -> None:
            with self.lock:
                pass

    expected = Dent(tiny_cnn, SAMPLE)(x)
    for name in (
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
        "register_state_dict_pre_hook",
        "register_load_state_dict_pre_hook",
        "register_load_state_dict_post_hook",
    ):
        getattr(tiny_cnn[1], name)(Logger().log)
    assert torch.equal(Dent(tiny_cnn, SAMPLE)(x.requires_grad_()), expected)


class _Auxiliary(Around):
    """Has a branch that is used only in training, as GoogLeNet and Inception do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.auxiliary = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.auxiliary(x) if self.training else x)


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("config", [each for each in CONFIGS if each.values != (LAST,)])
def test_layers_unused_by_the_forward_keep_their_trained_parameters(
    config: DentConfig, differentiable: bool, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense = Dent(_Auxiliary(tiny_cnn), config)
    adaptation = defense.adapt(x, differentiable=differentiable)
    for name, start in (("weight", 1.0), ("bias", 0.0)):
        value = adaptation.parameters[f"auxiliary.{name}"]
        assert torch.equal(value, torch.full_like(value, start))
    torch.testing.assert_close(defense.predict(x, adaptation), Dent(tiny_cnn, config)(x))


def test_a_model_that_is_a_single_norm_layer_adapts() -> None:
    adaptation = Dent(nn.LayerNorm(4), BATCH).adapt(torch.randn(3, 4))
    assert set(adaptation.parameters) == {"weight", "bias"}
    assert not torch.equal(adaptation.parameters["weight"], torch.ones(4))


@pytest.mark.parametrize("config", [BATCH, SAMPLE])
def test_adaptation_under_autocast_is_close_to_float32(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    config = replace(config, lr=0.01)
    defense = Dent(tiny_cnn, config)
    expected = defense.adapt(x)
    with torch.autocast("cpu", torch.bfloat16):
        adaptation = defense.adapt(x)
        logits = defense.predict(x, adaptation)
    assert logits.dtype == torch.bfloat16
    assert adaptation.entropy.dtype == torch.float32
    torch.testing.assert_close(adaptation.entropy, expected.entropy, rtol=0.05, atol=0.05)
    for name, value in adaptation.parameters.items():
        assert value.dtype == torch.float32
        assert not torch.equal(value, tiny_cnn.get_parameter(name).expand_as(value))
    torch.testing.assert_close(logits.float(), defense.predict(x, expected), rtol=0.05, atol=0.05)


class _Adapting(nn.Module):
    """Takes a gradient in its own forward without enabling gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.ones((), requires_grad=True)
        (slope,) = torch.autograd.grad(self.model(x * scale).sum(), scale)
        return self.model(x * (scale - slope))  # type: ignore[no-any-return]


def test_a_model_that_takes_gradients_without_enable_grad_gets_advice(
    tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    run = AdaptedModel(_Adapting(tiny_cnn), DentConfig(steps=0))
    with torch.no_grad(), pytest.raises(InputError, match=r"within `with torch.enable_grad\(\):`"):
        run(x, {})
