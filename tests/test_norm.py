"""Every kind of normalization layer, run with other parameters and statistics than its own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dent import Dent, DentConfig, UnsupportedModelError
from dent.adaptation.norm import Affine, affine_attributes, norm_layers, use_test_statistics
from tests.layer_toys import CHANNELS, KINDS, make_batch, make_toy

SAMPLE = DentConfig(steps=1, granularity="sample")
KIND_AND_HALF = [(kind, dtype) for kind in KINDS for dtype in (torch.float16, torch.bfloat16)]


def layer_input(kind: str, samples: int) -> Tensor:
    x = make_batch(kind, samples)
    repeats = [1] * x.dim()
    repeats[-1 if KINDS[kind].channels_last else 1] = CHANNELS // 2
    return x.repeat(repeats)


def make_layer(kind: str) -> nn.Module:
    layer = make_toy(kind)[1]
    assert isinstance(layer, nn.Module)
    return layer.eval()


def give(layer: nn.Module, parameters: dict[str, Any]) -> None:
    for name, value in parameters.items():
        layer._parameters.pop(name)
        vars(layer)[name] = value


@pytest.mark.parametrize("statistics", ["train", "test"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3)
@given(seed=st.integers(0, 99))
def test_every_row_uses_its_own_parameters(kind: str, statistics: str, seed: int) -> None:
    """Oracle: for each row, the layer itself with the parameters of that row."""
    generator = torch.Generator().manual_seed(seed)
    x = layer_input(kind, 3)
    rows = {
        name: torch.randn(3, *value.shape, generator=generator, dtype=value.dtype)
        for name, value in affine_attributes(make_layer(kind))
    }
    layer = make_layer(kind)
    if statistics == "test":
        use_test_statistics(layer)
    give(layer, {name: Affine(value) for name, value in rows.items()})
    expected = []
    for index in range(3):
        own = make_layer(kind).train(statistics == "test")
        own.load_state_dict({name: value[index] for name, value in rows.items()}, strict=False)
        expected.append(own(x)[index])
    torch.testing.assert_close(layer(x), torch.stack(expected), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_one_set_of_parameters_applies_to_all_rows(kind: str) -> None:
    x, layer = layer_input(kind, 3), make_layer(kind)
    expected = layer(x)
    give(layer, {n: Affine(v.detach()[None]) for n, v in list(affine_attributes(layer))})
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("kind", "dtype"), KIND_AND_HALF)
def test_half_precision_layers_take_float32_parameters(kind: str, dtype: torch.dtype) -> None:
    """They round once, at the end: the error is at most about twice that of the layer."""
    x, layer = layer_input(kind, 3).to(dtype), make_layer(kind).to(dtype)
    exact, own = make_layer(kind).to(dtype).double()(x.double()), layer(x)
    give(layer, {n: Affine(v.detach().float()[None]) for n, v in list(affine_attributes(layer))})
    found = layer(x)
    assert found.dtype == dtype
    assert (found - exact).abs().max() <= 2 * (own - exact).abs().max() + torch.finfo(dtype).eps


@pytest.mark.parametrize("kind", KINDS)
def test_test_statistics_give_the_output_of_training_mode(kind: str) -> None:
    x, layer = layer_input(kind, 4), make_layer(kind)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    static = layer(x)
    use_test_statistics(layer)
    found = layer(x)
    torch.testing.assert_close(found, make_layer(kind).train()(x), atol=1e-12, rtol=1e-12)
    assert ((found - static).abs().max() > 1e-2) == KINDS[kind].mixes
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_norm_layers_yields_each_layer_once_by_name(kind: str) -> None:
    model = make_toy(kind)
    model.append(nn.Sequential(model[1]))
    assert [name for name, _ in norm_layers(model)] == ["1", "4"]
    assert [name for name, _ in norm_layers(model[1])] == [""]


def test_norm_layers_skips_layers_of_other_kinds() -> None:
    model = nn.Sequential(nn.LocalResponseNorm(2), nn.Linear(2, 2), nn.Dropout(), nn.PReLU())
    assert list(norm_layers(model)) == []


def test_affine_attributes_omits_missing_scale_and_shift() -> None:
    assert list(affine_attributes(nn.BatchNorm2d(3, affine=False))) == []
    assert [name for name, _ in affine_attributes(nn.LayerNorm(3, bias=False))] == ["weight"]
    assert [name for name, _ in affine_attributes(nn.RMSNorm(3))] == ["weight"]


def test_parametrized_parameters_are_refused() -> None:
    model = make_toy("BatchNorm2d")
    nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Softplus())
    with pytest.raises(UnsupportedModelError, match=r"weight is computed by a parametrization.*re"):
        Dent(model, SAMPLE)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_parameters_that_a_hook_overwrites_are_refused() -> None:
    model = nn.Sequential(nn.LayerNorm((2, 3)), nn.Flatten(), nn.Linear(6, 3))
    nn.utils.weight_norm(model[0])
    with pytest.raises(UnsupportedModelError, match=r"LayerNorm\.weight is computed"):
        Dent(model, SAMPLE)


def test_parametrization_of_other_layers_is_accepted() -> None:
    model = make_toy("BatchNorm2d")
    nn.utils.parametrizations.spectral_norm(model[0])
    x = make_batch("BatchNorm2d", 3)
    torch.testing.assert_close(Dent(model, DentConfig(steps=0))(x), model.eval()(x))
    assert Dent(model, SAMPLE)(x).isfinite().all()


class SequenceFirst(nn.Module):
    """Normalizes (length, batch, features), as transformers do by default."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        sequence: Tensor = self.norm(x.transpose(0, 1))
        mixed, _ = self.attention(sequence, sequence, sequence)
        logits: Tensor = self.head(mixed.mean(0))
        return logits


def test_sequence_first_is_refused_sample_wise_and_works_batch_wise() -> None:
    x = torch.randn(3, 5, 4)
    with pytest.raises(UnsupportedModelError, match=r"shape \(5, 3, 4\).*3 samples.*batch_first"):
        Dent(SequenceFirst(), SAMPLE)(x)
    assert Dent(SequenceFirst(), DentConfig(steps=2))(x).shape == (3, 3)


@pytest.mark.parametrize(("length", "samples"), [(5, 5), (8, 8), (8, 16), (2, 1), (3, 1)])
def test_sequence_first_is_refused_also_if_the_sequence_is_as_long_as_the_batch(
    length: int, samples: int
) -> None:
    with pytest.raises(UnsupportedModelError, match="first dimension is not the batch"):
        Dent(SequenceFirst(), SAMPLE)(torch.randn(samples, length, 4))


class OwnArithmetic(nn.LayerNorm):
    """Applies its scale and shift by tensor arithmetic."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return F.layer_norm(input, self.normalized_shape) * self.weight + self.bias


def test_a_layer_with_its_own_arithmetic_is_refused_sample_wise_and_works_batch_wise() -> None:
    model = nn.Sequential(OwnArithmetic(4), nn.Linear(4, 3))
    x = torch.randn(5, 4)
    with pytest.raises(UnsupportedModelError, match=r"its scale or shift in \w+\(\).*batch-wise"):
        Dent(model, SAMPLE)(x)
    assert Dent(model, DentConfig(steps=2))(x).shape == (5, 3)


class _Linear(torch.autograd.Function):
    """An operation that takes only tensors, as one of an extension in C++."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x * torch.Tensor.detach(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        return gradient * scale, (gradient * x).sum(0)


class OwnOperation(nn.LayerNorm):
    """Applies its scale by an operation that takes only tensors."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return _Linear.apply(F.layer_norm(input, self.normalized_shape), self.weight)  # type: ignore[no-any-return]


def test_an_operation_that_takes_only_tensors_is_refused_sample_wise_and_works_batch_wise() -> None:
    model = nn.Sequential(OwnOperation(4, bias=False), nn.Linear(4, 3))
    x = torch.randn(5, 4)
    with pytest.raises(UnsupportedModelError, match=r"takes? one per sample.*batch-wise"):
        Dent(model, SAMPLE)(x)
    assert Dent(model, DentConfig(steps=2))(x).shape == (5, 3)


USES: dict[str, Callable[[nn.LayerNorm], Any]] = {
    "an index": lambda layer: layer.weight[:, None],
    ".float": lambda layer: layer.weight.float(),
    ".view": lambda layer: layer.weight.view(1, -1),
    "1 plus": lambda layer: 1 + layer.weight,
    "minus": lambda layer: -layer.weight,
    "times": lambda layer: layer.weight * 2,
    "power": lambda layer: layer.weight**2,
}


@pytest.mark.parametrize("use", USES)
def test_other_uses_of_scale_or_shift_are_refused_sample_wise_and_work_batch_wise(use: str) -> None:
    class Uses(nn.LayerNorm):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            USES[use](self)
            return super().forward(input)

    model, x = nn.Sequential(Uses(4), nn.Linear(4, 3)), torch.randn(5, 4)
    with pytest.raises(UnsupportedModelError, match=r"uses its scale or shift in .*batch-wise"):
        Dent(model, SAMPLE)(x)
    assert Dent(model, DentConfig(steps=2))(x).shape == (5, 3)


def test_a_layer_may_read_the_shape_of_its_parameters() -> None:
    class Shaped(nn.LayerNorm):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return F.layer_norm(input, self.weight.shape, self.weight, self.bias, self.eps)

    plain, x = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)), torch.randn(5, 4)
    shaped = nn.Sequential(Shaped(4), plain[1])
    assert torch.equal(Dent(shaped, SAMPLE)(x), Dent(plain, SAMPLE)(x))


class Cautious(nn.LayerNorm):
    """Casts its input to the dtype and device of its parameters first."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        cast = input.to(device=self.weight.device, dtype=self.weight.dtype)
        return super().forward(cast).to(input.dtype)


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_a_layer_may_read_the_dtype_and_device_of_its_parameters(granularity: Any) -> None:
    model = nn.Sequential(Cautious(4), nn.Linear(4, 3)).to(torch.bfloat16)
    config = DentConfig(steps=2, granularity=granularity)
    assert Dent(model, config)(torch.randn(5, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
