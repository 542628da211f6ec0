"""Models that cannot be defended, and the messages that say so."""

import copy
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dent.config import DentConfig
from dent.defenses.dent import Dent
from dent.errors import InputError, UnsupportedModelError
from tests.configurations import (
    BATCH,
    SAMPLE,
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
        (
            lambda: _head(nn.Sequential(nn.BatchNorm2d(8), nn.LayerNorm(14, bias=False))),
            DentConfig(last_layers=3),
            r"last_layers=3, but Sequential has 2 normalization layers with a scale or shift",
        ),
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
        "fewer-layers",
    ],
)
def test_models_that_cannot_be_adapted_are_refused(
    model: Callable[[], nn.Module], config: DentConfig, message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Dent(model(), config)


class _Pair(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(x), x


class _NoGrad(Around):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits


@pytest.mark.parametrize("config", [BATCH, SAMPLE])
def test_models_that_do_not_return_logits_with_gradients_are_refused(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    with pytest.raises(UnsupportedModelError, match="tuple"):
        Dent(_Pair(tiny_cnn), config)(x)
    with pytest.raises(UnsupportedModelError, match=r"torch\.no_grad"):
        Dent(_NoGrad(tiny_cnn), config)(x)


class _Complex(Around):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits.to(torch.complex64)


def test_complex_outputs_are_refused(tiny_cnn: nn.Sequential, x: Tensor) -> None:
    with pytest.raises(UnsupportedModelError, match=r"real logits, got torch\.complex64"):
        Dent(_Complex(tiny_cnn), BATCH)(x)


class _Always(nn.BatchNorm2d):
    """Normalizes by its running statistics in every mode."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        mean, variance = self.running_mean, self.running_var
        return F.batch_norm(input, mean, variance, self.weight, self.bias, False, 0.0, self.eps)


class _ByHand(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return input * scale[:, None, None] + shift[:, None, None]


@pytest.mark.parametrize("kind", [_Always, _ByHand])
@pytest.mark.parametrize("config", [TEST, STATISTICS_ONLY])
def test_models_that_read_running_statistics_are_refused_under_test_statistics(
    kind: type[nn.Module], config: DentConfig, x: Tensor
) -> None:
    assert Dent(_head(kind(8)), BATCH)(x).isfinite().all()
    with pytest.raises(UnsupportedModelError, match=r"statistics='test' takes away.*'train'"):
        Dent(_head(kind(8)), config)(x)


def test_an_error_of_the_model_under_test_statistics_stays_its_own(x: Tensor) -> None:
    class Broken(Around):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + None  # type: ignore[operator]

    with pytest.raises(TypeError, match="unsupported operand"):
        Dent(Broken(_head(nn.BatchNorm2d(8))), TEST)(x)


def test_models_without_values_are_refused_until_they_have_some(x: Tensor) -> None:
    model = _head(nn.BatchNorm2d(8))
    defense = Dent(copy.deepcopy(model).to("meta"), BATCH)
    with pytest.raises(
        UnsupportedModelError, match=r"0\.weight of Sequential is on the meta device"
    ):
        defense(x)
    defense.to_empty(device="cpu").load_state_dict(Dent(model, BATCH).state_dict())
    assert torch.equal(defense(x), Dent(model, BATCH)(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_scripted_models_are_refused(tiny_cnn: nn.Sequential) -> None:
    scripted = torch.jit.script(tiny_cnn)
    with pytest.raises(UnsupportedModelError, match=r"cannot wrap a .*Script.*scripted from"):
        Dent(scripted, BATCH)


@pytest.mark.parametrize("config", [BATCH, STATISTICS_ONLY])
def test_uninitialized_layers_of_any_kind_are_refused(
    config: DentConfig,
) -> None:
    model = nn.Sequential(nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(UnsupportedModelError, match=r"'0' \(LazyBatchNorm2d\) is not initialized"):
        Dent(model, config)
    model[0] = nn.BatchNorm2d(3)
    with pytest.raises(UnsupportedModelError, match=r"'2' \(LazyLinear\) is not initialized yet"):
        Dent(model, config)
    model(torch.rand(2, 3, 4, 4))
    assert Dent(model, config)(torch.rand(2, 3, 4, 4)).shape == (2, 3)


def test_models_that_cannot_be_copied_are_refused(tiny_cnn: nn.Sequential) -> None:
    vars(tiny_cnn)["lock"] = threading.Lock()
    with pytest.raises(UnsupportedModelError, match=r"Sequential cannot be copied.*deepcopy"):
        Dent(tiny_cnn, BATCH)


def test_a_model_that_refuses_eval_mode_is_refused() -> None:
    class AlwaysTrains(nn.Sequential):
        def train(self, mode: bool = True) -> "AlwaysTrains":
            raise NotImplementedError("only for training")

    with pytest.raises(UnsupportedModelError, match=r"eval\(\) raises .*: only for training\."):
        Dent(AlwaysTrains(nn.BatchNorm2d(3)), BATCH)


@pytest.mark.parametrize("error", [AssertionError, IndexError, RuntimeError, ValueError])
def test_an_error_of_the_model_is_passed_on_in_an_input_error(
    error: type[Exception], x: Tensor
) -> None:
    class Strict(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            raise error("expected 224 pixels")

    own = r"Strict whose weights are torch\.float32 on cpu"
    came = r"shape \(5, 3, 16, 16\), torch\.float32 on cpu: expected 224 pixels"
    with pytest.raises(InputError, match=f"{own} could not take a batch of {came}") as caught:
        Dent(Strict(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), BATCH)(x)
    assert isinstance(caught.value.__cause__, error)


def test_a_batch_of_another_type_than_the_weights_is_refused_with_the_conversion(
    tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    with pytest.raises(InputError, match=r"float64 on cpu: .*x\.to\(torch\.float32\)$"):
        Dent(tiny_cnn, BATCH)(x.double())


def test_an_out_of_memory_error_does_not_become_an_input_error(x: Tensor) -> None:
    class Large(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        Dent(Large(nn.BatchNorm2d(3)), BATCH)(x)
