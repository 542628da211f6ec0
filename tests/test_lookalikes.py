"""Normalization layers that cannot be adapted are reported, and can be registered."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from dent import DentWarning, register_norm
from dent.adaptation import norm
from dent.config import DENT_PLUS, DentConfig, SmoothingConfig
from dent.defenses.dent import Dent
from dent.errors import ConfigError, UnadaptedLayersWarning, UnsupportedModelError
from dent.models import Normalize
from tests import slow_dent

STEPS = DentConfig(steps=2, lr=1e-2)
CONFIGS = [STEPS, replace(STEPS, granularity="sample"), DENT_PLUS]


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(norm, "_REGISTERED", {})
    with warnings.catch_warnings():
        warnings.simplefilter("error", DentWarning)
        yield


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def _net(first: nn.Module, last: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        first,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 8),
        last or nn.Identity(),
        nn.Linear(8, 5),
    ).eval()


def _trained(layer: Any) -> Any:
    """Give a layer a scale, shift and statistics other than the initial ones."""
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in (*layer.named_parameters(), *layer.named_buffers()):
            if value.is_floating_point():
                own = torch.rand(value.shape, generator=draws)
                value.copy_(own + 0.5 if name in {"weight", "running_var"} else own - 0.5)
    return layer


class _LayerNorm(nn.Module):
    """A handwritten LayerNorm, computed by tensor arithmetic."""

    def __init__(self, features: int = 8, *, shift: bool = True) -> None:
        super().__init__()
        self.eps = 1e-5
        self.gamma = nn.Parameter(torch.ones(features))
        self.beta = nn.Parameter(torch.zeros(features)) if shift else None

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        deviation = (x.var(-1, unbiased=False, keepdim=True) + self.eps).sqrt()
        normalized = self.gamma * centered / deviation
        return normalized if self.beta is None else normalized + self.beta


class _OnePlus(nn.Module):
    """Stores its scale minus 1, which is not what `register_norm` assumes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((8,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + self.weight)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (lambda: FrozenBatchNorm2d(8), r"1 FrozenBatchNorm2d \(first '1'\)"),
        (_LayerNorm, r"1 _LayerNorm \(first '1'\)"),
    ],
)
def test_unadapted_normalization_layers_are_named_in_warnings_and_errors(
    layer: Callable[[], nn.Module], said: str
) -> None:
    with pytest.warns(UnadaptedLayersWarning, match=rf"{said}.*dent\.register_norm"):
        Dent(_net(layer(), nn.LayerNorm(8)), STEPS)
    with pytest.raises(UnsupportedModelError, match=rf"{said}.*dent\.register_norm"):
        Dent(_net(layer()), STEPS)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_a_scripted_normalization_layer_is_named_in_a_warning() -> None:
    scripted: Any = torch.jit.script(nn.BatchNorm2d(8).eval())
    with pytest.warns(UnadaptedLayersWarning, match="1 scripted BatchNorm2d") as caught:
        Dent(_net(scripted, nn.LayerNorm(8)), STEPS)
    assert "before torch.jit" in str(caught[0].message)
    assert "register_norm" not in str(caught[0].message)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_a_model_may_have_scripted_parts_with_layers_inside(x: Tensor) -> None:
    model = _net(nn.BatchNorm2d(8))
    scripted: Any = torch.jit.script(model[2:4])
    partly = nn.Sequential(model[:2], scripted, model[4:]).eval()
    assert torch.equal(Dent(partly, STEPS)(x), Dent(model, STEPS)(x))


class _Writes(nn.Module):
    """Writes to a number, a list and a buffer of its own whenever it runs."""

    count: int

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.past = [0]
        self.register_buffer("total", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.past.append(self.count)
        self.total.add_(1)
        return x


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_scripted_parts_keep_their_flags_buffers_and_attributes(x: Tensor) -> None:
    writes: Any = torch.jit.script(_Writes())
    dropout: Any = torch.jit.script(nn.Dropout(0.5))
    traced: Any = torch.jit.trace(nn.Identity(), torch.zeros(1))
    model = _net(nn.BatchNorm2d(8), nn.Sequential(writes, dropout, traced)).train()
    Dent(model, STEPS)(x)
    assert all(part.training for part in (writes, dropout, traced))
    assert (writes.count, writes.past, float(writes.total)) == (0, [0], 0)


def test_a_model_may_have_parts_from_torch_export(x: Tensor) -> None:
    model = _net(nn.BatchNorm2d(8))
    exported = torch.export.export(model[3:], (x.new_zeros(5, 8, 14, 14),)).module()
    partly = nn.Sequential(*model[:3], exported)
    assert torch.equal(Dent(partly, STEPS)(x), Dent(model, STEPS)(x))
    assert exported.training
    exported = torch.export.export(_net(nn.BatchNorm2d(8)), (x,)).module()
    with pytest.warns(UnadaptedLayersWarning, match="1 exported module .* before torch.jit or"):
        Dent(nn.Sequential(exported, nn.LayerNorm(5)), STEPS)


def test_a_graph_of_torch_export_is_refused_with_advice(x: Tensor) -> None:
    exported = torch.export.export(_net(nn.BatchNorm2d(8)), (x,)).module()
    with pytest.raises(UnsupportedModelError, match="wrap the model that was exported"):
        Dent(exported, STEPS)


@pytest.mark.parametrize("hold", [lambda it: [it], lambda it: {"a": (it,)}])
def test_normalization_layers_in_plain_containers_are_named_in_a_warning(
    hold: Callable[[nn.Module], object],
) -> None:
    model = _net(nn.BatchNorm2d(8))
    model.aside = hold(nn.Sequential(nn.BatchNorm2d(3)))  # type: ignore[assignment]
    with pytest.warns(UnadaptedLayersWarning, match=r"1 normalization layer \(first in 'aside'"):
        Dent(model, STEPS)
    model.aside = [model[1]]  # type: ignore[assignment] # already a registered submodule
    Dent(model, STEPS)


class _PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.norm(x))  # type: ignore[no-any-return]


class _NormedLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x) @ nn.functional.normalize(self.weight)


def test_layers_that_only_resemble_normalization_cause_no_warning() -> None:
    model = _net(nn.BatchNorm2d(8), _PreNorm())
    Dent(nn.Sequential(Normalize((0.5,) * 3, (0.2,) * 3), model).eval(), STEPS)
    Dent(_net(nn.BatchNorm2d(8), _NormedLinear()), STEPS)
    Dent(_net(nn.LocalResponseNorm(2), nn.LayerNorm(8)), STEPS)
    Dent(_net(nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)), nn.LayerNorm(8)), STEPS)
    # No warning if no layer is to be adapted.
    smooth = DentConfig(steps=1, adapt_affine=False, smoothing=SmoothingConfig(sigma=0.5))
    Dent(_net(FrozenBatchNorm2d(8)), smooth)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_registered_batch_norm_adapts_like_the_one_of_pytorch(
    config: DentConfig, x: Tensor
) -> None:
    register_norm(FrozenBatchNorm2d)
    frozen, plain = _net(_trained(FrozenBatchNorm2d(8))), _net(_trained(nn.BatchNorm2d(8)))
    for name, value in frozen[1].named_buffers():
        plain[1].state_dict()[name].copy_(value)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    defense, expected = Dent(frozen, config), Dent(plain, config)
    found, known = defense.adapt(x), expected.adapt(x)
    assert found.parameters.keys() == known.parameters.keys() == {"1.weight", "1.bias"}
    for name, value in found.parameters.items():
        torch.testing.assert_close(value, known.parameters[name], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(defense(x), expected(x), atol=1e-4, rtol=1e-4)
    for name, value in frozen.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_registered_layer_norm_adapts_like_the_one_of_pytorch(
    config: DentConfig, dtype: torch.dtype, x: Tensor
) -> None:
    register_norm(_LayerNorm, scale="gamma", shift="beta", channels="last")
    own, plain = _LayerNorm(), nn.LayerNorm(8)
    for ours, theirs in ((own.gamma, plain.weight), (own.beta, plain.bias)):
        nn.init.uniform_(ours, 0.5, 1.5)
        theirs.data.copy_(ours)
    mine, known = (_net(nn.Identity(), layer).to(dtype) for layer in (own, plain))
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-4
    answers = [Dent(model, config)(x.to(dtype)) for model in (mine, known)]
    torch.testing.assert_close(*answers, atol=tolerance, rtol=tolerance)
    assert set(Dent(mine, config).adapt(x.to(dtype)).parameters) == {"6.gamma", "6.beta"}


class _Broadcast(nn.Module):
    """Normalizes each image over its channels, with parameters that broadcast over a batch."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.rand(shape, generator=draws) + 0.5)
        self.bias = nn.Parameter(torch.rand(shape, generator=draws) - 0.5)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * self.weight + self.bias


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 1)])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_registered_layer_may_have_parameters_of_more_than_one_axis(
    config: DentConfig, shape: tuple[int, ...], x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_norm(_Broadcast)
    monkeypatch.setattr(slow_dent, "NORMS", (_Broadcast,))
    model = _net(_Broadcast(shape))
    expected = slow_dent.adapt_and_predict(model, config, x)
    torch.testing.assert_close(Dent(model, config)(x), expected.logits, atol=1e-4, rtol=1e-4)


def test_a_registered_layer_with_other_arithmetic_is_refused_sample_wise(x: Tensor) -> None:
    register_norm(_OnePlus, shift=None, channels="last")
    model = _net(nn.BatchNorm2d(8), _OnePlus())
    with pytest.raises(UnsupportedModelError, match=r"gives other logits.*_OnePlus.*register_norm"):
        Dent(model, CONFIGS[1])(x)
    found = Dent(model, STEPS).adapt(x)  # batch-wise, the layer uses its own arithmetic
    assert not torch.equal(found.parameters["6.weight"], model[6].weight)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"scale": "gamma", "shift": "bta"}, "'bta' holds the shift of _LayerNorm.*gamma, beta"),
        ({"scale": "eps", "shift": "beta"}, "'eps' holds the scale of _LayerNorm.*gamma, beta"),
    ],
)
def test_a_registered_name_that_a_layer_lacks_is_refused(named: dict[str, Any], said: str) -> None:
    register_norm(_LayerNorm, channels="last", **named)
    with pytest.raises(UnsupportedModelError, match=said):
        Dent(_net(nn.BatchNorm2d(8), _LayerNorm()), STEPS)


def test_a_registered_attribute_may_be_none_in_a_layer(x: Tensor) -> None:
    register_norm(_LayerNorm, scale="gamma", shift="beta", channels="last")
    layer = _LayerNorm(shift=False)
    assert set(Dent(_net(nn.Identity(), layer), STEPS).adapt(x).parameters) == {"6.gamma"}


def test_test_statistics_are_refused_for_a_registered_layer() -> None:
    register_norm(FrozenBatchNorm2d)
    with pytest.raises(UnsupportedModelError, match="statistics='train'"):
        Dent(_net(FrozenBatchNorm2d(8)), replace(STEPS, statistics="test"))


@pytest.mark.parametrize(
    ("given", "named", "said"),
    [
        (nn.BatchNorm2d(3), {}, "expected a class"),
        (int, {}, "expected a class"),
        (nn.SyncBatchNorm, {}, "without being registered"),
        (nn.Module, {}, "your own normalization layers, got Module"),
        (torch.jit.ScriptModule, {}, "your own normalization layers, got ScriptModule"),
        (FrozenBatchNorm2d, {"channels": "first"}, "'second' or 'last'"),
        (FrozenBatchNorm2d, {"scale": None, "shift": None}, "nothing to adapt"),
        (FrozenBatchNorm2d, {"scale": 3}, "scale must be the name .*, got 3"),
        (FrozenBatchNorm2d, {"shift": False}, "shift must be the name .*, got False"),
    ],
)
def test_invalid_registrations_are_refused(given: Any, named: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        register_norm(given, **named)


class _Functional(nn.Module):
    """Calls batch_norm with tensors of its own, before a normalization layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.norm = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), nn.LayerNorm(8)
        self.w, self.b = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        h = F.batch_norm(self.first(x), self.mean, self.var, self.w, self.b, self.training)
        return self.last(self.norm(h.relu().mean((2, 3))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_a_functional_normalization_is_named_in_a_warning(x: Tensor, granularity: Any) -> None:
    defense = Dent(_Functional(), DentConfig(steps=2, lr=0.1, granularity=granularity))
    with pytest.warns(UnadaptedLayersWarning, match=r"calls batch_norm of shape \(8,\)"):
        defense(x)


class _Holder:
    """A plain object, which PyTorch does not look into."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer


class _Elsewhere(nn.Module):
    """Normalizes once more, by a layer that is no submodule, or by values that are computed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body = _net(nn.BatchNorm2d(8), nn.LayerNorm(8))
        self.offset = nn.Parameter(torch.full((5,), 0.3))
        layer = _trained(nn.LayerNorm(5))

        def closure(x: Tensor) -> Any:
            return layer(x)

        held = {"object": _Holder(layer), "closure": closure, "set": {layer}}
        self.held: Any = held.get(kind)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        if self.kind == "object":
            return self.held.layer(logits)  # type: ignore[no-any-return]
        if self.kind == "closure":
            return self.held(logits)  # type: ignore[no-any-return]
        if self.kind == "set":
            return next(iter(self.held))(logits)  # type: ignore[no-any-return]
        if self.kind == "computed":
            return F.layer_norm(logits, (5,), weight=1 + self.offset)
        return torch.native_layer_norm(logits, (5,), self.offset, None, 1e-5)[0]


@pytest.mark.parametrize("granularity", ["batch", "sample"])
@pytest.mark.parametrize("kind", ["object", "closure", "set", "computed", "native"])
def test_a_normalization_that_no_layer_of_the_model_computes_is_named_in_a_warning(
    x: Tensor, kind: str, granularity: Any
) -> None:
    defense = Dent(_Elsewhere(kind), replace(STEPS, granularity=granularity))
    with pytest.warns(UnadaptedLayersWarning, match=r"layer_norm of shape \(5,\)"):
        defense(x)


class _Hidden(nn.Module):
    """Has a BatchNorm layer in a plain object, and one that PyTorch sees."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _net(nn.BatchNorm2d(8))
        self.held = _Holder(nn.BatchNorm1d(5).eval())

    def forward(self, x: Tensor) -> Tensor:
        return self.held.layer(self.body(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("steps", [0, 2])
def test_running_statistics_of_a_hidden_layer_are_refused(x: Tensor, steps: int) -> None:
    defense = Dent(_Hidden(), replace(STEPS, steps=steps, statistics="test"))
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=r"running statistics of shape \(5,\)"):
            defense(x)
    assert Dent(_net(nn.BatchNorm2d(8)), defense.config)(x).isfinite().all()


@pytest.mark.parametrize("statistics", ["test", "moving"])
def test_statistics_of_a_functional_batch_norm_are_refused(x: Tensor, statistics: Any) -> None:
    defense = Dent(_Functional(), DentConfig(steps=2, lr=0.1, statistics=statistics))
    with pytest.raises(UnsupportedModelError, match=r"of shape \(8,\).*statistics='train'"):
        defense(x)


@pytest.mark.parametrize("granularity", ["batch", "sample"])
@pytest.mark.parametrize("statistics", ["train", "test", "moving"])
@pytest.mark.parametrize("activated", [False, True])
def test_functions_that_layers_call_cause_no_warning(
    x: Tensor, activated: bool, statistics: Any, granularity: Any
) -> None:
    kind = pytest.importorskip("timm.layers").BatchNormAct2d if activated else nn.BatchNorm2d
    config = DentConfig(steps=2, lr=0.1, statistics=statistics, granularity=granularity)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnadaptedLayersWarning)
        Dent(_net(kind(8), nn.LayerNorm(8)), config)(x)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "resnetv2_50"])
def test_functions_of_timm_models_cause_no_warning(name: str) -> None:
    timm = pytest.importorskip("timm")
    size = {"img_size": 32} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=5, **size)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnadaptedLayersWarning)
        Dent(model, DentConfig(steps=1, lr=0.1))(torch.rand(2, 3, 32, 32))


class _Standardized(nn.Module):
    """A convolution that normalizes its weight, as those of normalizer-free nets do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        flat, scale = self.weight.reshape(1, 8, -1), (self.gain * 0.2).view(-1)
        weight = F.batch_norm(flat, None, None, weight=scale, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight))


@pytest.mark.filterwarnings("error::dent.errors.UnadaptedLayersWarning")
def test_normalized_weights_cause_no_warning() -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    model = nn.Sequential(_Standardized(), nn.BatchNorm2d(8), nn.ReLU(), head).eval()
    assert Dent(model)(torch.rand(8, 3, 8, 8)).shape == (8, 5)
