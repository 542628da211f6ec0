"""Performance settings do not change results."""

import copy
import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dent import (
    ConfigError,
    Dent,
    DentConfig,
    InputError,
    Performance,
    SlowPrecisionWarning,
)
from dent.attacks.protocol import query
from dent.defenses.registry import describe
from dent.evaluation.records.spec import DefenseSpec
from dent.evaluation.restoration import restored_defense
from dent.kinds import recorded_kind
from dent.performance import Precision
from dent.support.devices import multiplies_in_bfloat16
from dent.training.engine import accelerator
from tests.configurations import BATCH, CONFIGS, SAMPLE, TEST, Around
from tests.small_models import MODELS, make_images
from tests.test_behaviour import CONFIGS as DEFENSES

PLAIN = Performance(memory_format="preserve")
SLOW_MODELS = ("resnet18-nominal", "torchvision-resnet18")


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def assert_same_answers(defense: Dent, plain: Dent, x: Tensor, **tolerance: float) -> None:
    x = x.clone().requires_grad_()
    found, expected = defense.adapt(x), plain.adapt(x)
    assert found.parameters.keys() == expected.parameters.keys()
    for name, value in expected.parameters.items():
        torch.testing.assert_close(found.parameters[name], value, **tolerance)
    torch.testing.assert_close(found.entropy, expected.entropy, **tolerance)
    logits, known = defense.predict(x, found), plain.predict(x, expected)
    torch.testing.assert_close(logits, known, **tolerance)
    labels = torch.arange(len(x)) % logits.shape[1]
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), x)
    (right,) = torch.autograd.grad(F.cross_entropy(known, labels), x)
    torch.testing.assert_close(gradient, right, **tolerance)
    assert gradient.stride() == right.stride()


@pytest.mark.parametrize("config_name", [name for name in DEFENSES if name != "statistics-only"])
@pytest.mark.parametrize(
    "model_name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW_MODELS else ()) for name in MODELS],
)
def test_every_memory_format_gives_the_same_results(model_name: str, config_name: str) -> None:
    """In float64, because rounding in float32 may move a ReLU across its kink."""
    model, config = MODELS[model_name]().double().eval(), DEFENSES[config_name]
    for memory_format in ("auto", "channels-last"):
        defense = Dent(model, config, Performance(memory_format=memory_format))  # type: ignore[arg-type]
        plain = Dent(model, config, PLAIN)
        assert_same_answers(defense, plain, make_images(torch.float64), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("config", [BATCH, SAMPLE])
def test_exact_gradient_does_not_depend_on_the_memory_format(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    model, x = tiny_cnn.double(), x.double().requires_grad_()
    gradients = []
    for performance in (Performance(), PLAIN):
        defense = Dent(model, config, performance)
        logits = defense.predict(x, defense.adapt(x, differentiable=True))
        gradients += torch.autograd.grad(logits.square().sum(), x)
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)
    assert gradients[0].stride() == gradients[1].stride()


class _Seeing(Around):
    """Records whether each batch is channels-last."""

    seen: list[bool]

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return super().forward(x)


def _seeing(model: nn.Module) -> tuple[_Seeing, list[bool]]:
    wrapped = _Seeing(model)
    type(wrapped).seen = seen = []  # on the class, because a private copy has its own attributes
    return wrapped, seen


def _convolutional(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1),
        nn.BatchNorm2d(width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    ).eval()


@pytest.mark.parametrize(
    ("performance", "width", "pixels", "expected"),
    [
        pytest.param(Performance(), 16, 16, True, id="auto"),
        pytest.param(Performance(), 15, 16, False, id="auto, too narrow"),
        pytest.param(Performance(), 2000, 4, True, id="auto, wide but not for the batch"),
        pytest.param(Performance(), 12000, 4, False, id="auto, more weights than pixels pay for"),
        pytest.param(Performance(memory_format="channels-last"), 8, 16, True, id="channels-last"),
        pytest.param(PLAIN, 64, 16, False, id="preserve"),
    ],
)
def test_memory_format_follows_the_setting_the_model_and_the_batch(
    performance: Performance, width: int, pixels: int, expected: bool, x: Tensor
) -> None:
    model, seen = _seeing(_convolutional(width))
    defense = Dent(model, BATCH, performance)
    defense(x[..., :pixels, :pixels])  # the first batch also runs one-time checks of the model
    seen.clear()
    defense(x[..., :pixels, :pixels])
    assert seen == [expected] * (BATCH.steps + 1)


class _Counting(Around):
    """Records the number of images of each call."""

    counts: list[int]

    def forward(self, x: Tensor) -> Tensor:
        self.counts.append(len(x))
        return super().forward(x)


def test_the_first_batch_costs_one_whole_forward_and_checks_on_few_images() -> None:
    model = _Counting(_convolutional(32))
    type(model).counts = counts = []
    x = torch.rand(64, 3, 16, 16)
    defense = Dent(model, DentConfig(steps=0))
    copied = copy.deepcopy(defense)
    for each in (defense, copied):
        counts.clear()
        each(x)
        assert [count for count in counts if count > 8] == [64]


class _SeeingWeights(nn.Conv2d):
    """Records whether the weights of each forward are channels-last."""

    seen: ClassVar[list[bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.weight.is_contiguous(memory_format=torch.channels_last))
        return super().forward(x)


@pytest.mark.parametrize(("groups", "reordered"), [(1, True), (2, False)])
def test_weights_of_the_copy_are_channels_last_unless_grouped(groups: int, reordered: bool) -> None:
    model = nn.Sequential(_convolutional(16)[:2], _SeeingWeights(16, 16, 3, groups=groups))
    model = nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    defense = Dent(model, BATCH)
    defense(torch.rand(4, 3, 16, 16))  # the first batch also runs one-time checks of the model
    _SeeingWeights.seen.clear()
    defense(torch.rand(4, 3, 16, 16))
    assert _SeeingWeights.seen == [reordered] * (BATCH.steps + 1)
    assert model[0][1].weight.is_contiguous()


def test_a_batch_keeps_its_memory_format_without_convolutions(x: Tensor) -> None:
    model, seen = _seeing(nn.Sequential(nn.Flatten(), nn.LayerNorm(768), nn.Linear(768, 10)))
    Dent(model, BATCH)(x)
    assert not any(seen)


class _Viewing(Around):
    """Needs contiguous activations, and counts its forwards in a buffer."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        self.head = nn.Linear(784, 10)
        self.register_buffer("begun", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("begun").add_(1)
        logits: Tensor = self.head(self.model(x).view(len(x), -1))
        return logits + self.get_buffer("begun")


@pytest.mark.parametrize("config", CONFIGS)
def test_a_model_that_fails_with_channels_last_gets_contiguous_batches(
    config: DentConfig, x: Tensor
) -> None:
    model = _Viewing().eval()
    defense, plain = Dent(model, config), Dent(model, config, PLAIN)
    for _ in range(2):
        assert torch.equal(defense(x), plain(x))
    with pytest.raises(InputError, match="view size is not compatible"):
        Dent(model, config, Performance(memory_format="channels-last"))(x)


class _Striding(Around):
    """Reads its input in the order of memory."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = x[0].numel()
        return self.model(x) + x.as_strided((len(x), 10), (pixels, 1))


class _Drawing(Around):
    """Adds noise from `randn_like`, which follows the memory format of the input."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x + 0.1 * torch.randn_like(x))
        return logits


@pytest.mark.parametrize("kind", [_Striding, _Drawing])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_model_whose_logits_change_with_channels_last_gets_contiguous_batches(
    kind: type[Around], config: DentConfig, x: Tensor
) -> None:
    model = kind(_convolutional(16)).eval()
    answers = []
    for performance in (Performance(), PLAIN):
        torch.manual_seed(1)
        answers.append(Dent(model, config, performance)(x))
    assert torch.equal(*answers)
    with pytest.raises(ConfigError, match="gives other logits where images lie channels-last"):
        Dent(model, config, Performance(memory_format="channels-last"))(x)


def test_the_check_of_the_memory_format_keeps_the_random_state(x: Tensor) -> None:
    states = []
    for performance in (Performance(), PLAIN):
        torch.manual_seed(1)
        Dent(_Drawing(_convolutional(16)).eval(), BATCH, performance)(x)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_a_bad_batch_is_refused_with_the_usual_message(tiny_cnn: nn.Sequential) -> None:
    with pytest.raises(InputError, match=r"could not take a batch of shape \(2, 5, 8, 8\)"):
        Dent(tiny_cnn, BATCH)(torch.rand(2, 5, 8, 8))


@pytest.mark.parametrize("config", CONFIGS)
def test_bfloat16_gives_nearly_the_same_logits_in_float32(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    x.requires_grad_()
    plain = Dent(tiny_cnn, config)
    defense = Dent(tiny_cnn, config, Performance(precision="bfloat16"))
    logits = defense(x)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, plain(x))
    torch.testing.assert_close(logits, plain(x), rtol=0.1, atol=0.1)
    adaptation = defense.adapt(x)
    assert all(value.dtype == torch.float32 for value in adaptation.parameters.values())
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    assert gradient.dtype == torch.float32


@pytest.fixture
def capabilities(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool, str], None]]:
    """Pretend a CPU with or without bfloat16 instructions."""

    def pretend(fast: bool, machine: str = "x86_64") -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr("platform.machine", lambda: machine)
        multiplies_in_bfloat16.cache_clear()

    yield pretend
    multiplies_in_bfloat16.cache_clear()


def test_emulated_bfloat16_warns_once(
    tiny_cnn: nn.Sequential, x: Tensor, capabilities: Callable[..., None]
) -> None:
    capabilities(False)
    defense = Dent(tiny_cnn, BATCH, Performance(precision="bfloat16"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for each in (defense, defense, copy.deepcopy(defense)):
            each(x)
    assert ["no bfloat16 instructions" in str(each.message) for each in caught] == [True]
    assert caught[0].category is SlowPrecisionWarning
    assert [Path(each.filename).name for each in caught] == [Path(__file__).name]


def test_bfloat16_warns_once_that_it_leaves_float64_as_it_is(
    tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    model, x = tiny_cnn.double(), x.double()
    defense = Dent(model, BATCH, Performance(precision="bfloat16"))
    with pytest.warns(SlowPrecisionWarning, match="no effect on a batch of float64"):
        logits = defense(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowPrecisionWarning)
        assert torch.equal(defense(x), logits)
    assert torch.equal(logits, Dent(model, BATCH)(x))


@pytest.mark.parametrize(
    ("fast", "machine", "precision"),
    [(True, "x86_64", "bfloat16"), (False, "aarch64", "bfloat16"), (False, "x86_64", "model")],
)
def test_other_precisions_and_hardware_do_not_warn(
    fast: bool,
    machine: str,
    precision: Precision,
    tiny_cnn: nn.Sequential,
    x: Tensor,
    capabilities: Callable[..., None],
) -> None:
    capabilities(fast, machine)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowPrecisionWarning)
        Dent(tiny_cnn, BATCH, Performance(precision=precision))(x)


@pytest.mark.usefixtures("own_precision")
@pytest.mark.parametrize("precision", ["bf16", "auto", "no"])
def test_training_in_emulated_bfloat16_warns(
    precision: Any, capabilities: Callable[..., None]
) -> None:
    capabilities(False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        accelerator("cpu", precision)
    said = [each for each in caught if each.category is SlowPrecisionWarning]
    assert len(said) == (precision == "bf16")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="it is the oracle")
def test_the_instructions_of_this_cpu_are_found() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    known = "avx512_bf16" in flags or "amx_tile" in flags
    assert multiplies_in_bfloat16("cpu") is (known if platform.machine() == "x86_64" else None)


def test_records_contain_a_reduced_precision_but_not_the_memory_format(
    tiny_cnn: nn.Sequential,
) -> None:
    assert describe(Dent(tiny_cnn, BATCH, PLAIN)) == describe(Dent(tiny_cnn, BATCH))
    defense = Dent(tiny_cnn, BATCH, Performance(precision="bfloat16"))
    described = describe(defense)
    assert described == describe(Dent(tiny_cnn, BATCH)) | {"precision": "bfloat16"}
    kind = recorded_kind("dent")
    spec = DefenseSpec(name="mine", kind=kind, config=described, weights=None, batch_dependent=True)
    restored = restored_defense(spec, tiny_cnn)
    assert isinstance(restored, Dent)
    assert restored.performance.precision == "bfloat16"
    assert restored.config == BATCH


def test_with_steps_keeps_the_performance_settings(tiny_cnn: nn.Sequential) -> None:
    assert Dent(tiny_cnn, BATCH, PLAIN).with_steps(7).performance == PLAIN


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"memory_format": "nhwc"}, "memory_format must be one of 'auto', 'channels-last'"),
        ({"precision": "float16"}, "precision must be one of 'model', 'bfloat16'"),
    ],
)
def test_unknown_values_are_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Performance(**values)


def test_a_performance_of_another_type_is_refused(tiny_cnn: nn.Sequential) -> None:
    fast: Any = "fast"
    with pytest.raises(ConfigError, match="Dent expected a Performance"):
        Dent(tiny_cnn, BATCH, fast)


def test_group_norm_gets_contiguous_input_if_torch_would_crash(
    x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seeing(nn.GroupNorm):
        seen: ClassVar[list[bool]] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x.is_contiguous())
            return super().forward(x)

    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), Seeing(4, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    ).eval()
    expected = Dent(model, BATCH, PLAIN)(x)
    monkeypatch.setattr("dent.adaptation.adapted_model._GROUP_NORM_CRASHES", True)
    defense = Dent(model, BATCH, Performance(memory_format="channels-last"))
    defense(x)  # the first batch also runs one-time checks of the model
    Seeing.seen.clear()
    answered = defense(x)
    assert Seeing.seen == [True] * (BATCH.steps + 1)
    torch.testing.assert_close(answered, expected)
    assert not list(model[1]._forward_pre_hooks)


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_one_image_adapts_like_a_batch_of_the_same_image_twice(granularity: Any) -> None:
    """torch's CPU backward of InstanceNorm misreads one channels-last image."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1),
        nn.InstanceNorm2d(32, affine=True),
        nn.GELU(),
        nn.Conv2d(32, 32, 3, 2, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    model = model.double().eval()
    image = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    reduction: Any = "mean" if granularity == "batch" else "sum"
    config = DentConfig(steps=3, lr=0.05, granularity=granularity, reduction=reduction)
    defense = Dent(model, config)
    torch.testing.assert_close(defense(image), defense(image.repeat(2, 1, 1, 1))[:1])


class _Tokens(nn.Module):
    """Normalizes a sequence of pixels, as transformers do: its gradient lies channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        logits: Tensor = self.linear(tokens).square().mean(1)
        return logits


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d])
@pytest.mark.parametrize("config", [BATCH, SAMPLE, TEST])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_one_image_adapts_like_the_same_image_twice_in_every_layout(
    kind: Any, config: DentConfig, form: torch.memory_format
) -> None:
    """torch's CPU backward misreads the gradient of one image in another memory format."""
    torch.manual_seed(0)
    norm = kind(32, affine=True)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.GELU(), norm, _Tokens())
    model = model.double().eval().to(memory_format=form)
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64).to(memory_format=form)
    alone: Any = "sum" if config.granularity == "sample" else "mean"
    config = replace(config, lr=0.05, objective="entropy", reduction=alone)
    defense, twice = Dent(model, config, PLAIN), image.repeat(2, 1, 1, 1)
    torch.testing.assert_close(defense(image), defense(twice)[:1])
    gradients = []
    for batch in (image, twice):
        x = batch.clone().requires_grad_()
        logits = defense.predict(x, defense.adapt(x, differentiable=True))
        gradients.append(torch.autograd.grad(logits[0, 0], x)[0].sum(0))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_attacks_get_the_gradient_of_one_image_through_any_model(kind: Any) -> None:
    """torch's CPU backward misreads the gradient of one image in another memory format."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), kind(32, affine=True), _Tokens())
    model = model.double().eval()
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    gradients = []
    for batch in (image, image.repeat(2, 1, 1, 1)):
        x = batch.clone().requires_grad_()
        gradients.append(torch.autograd.grad(query(model, x)[0, 0], x)[0].sum(0))
    torch.testing.assert_close(*gradients)
