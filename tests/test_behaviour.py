"""One suite of what every defense of every model must do."""

import itertools
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer, resnet18
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from dent import models
from dent.config import DENT, DENT_NOMINAL, DENT_PLUS, DentConfig, SmoothingConfig
from dent.defense import Dent
from tests.conftest import make_tiny_cnn


def _images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(7), dtype=dtype)


def _convolutional(norm: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        norm(),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def _linear(norm: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(192, 16),
        norm(),
        nn.ReLU(),
        nn.Linear(16, 10),
    )


def _vision_transformer() -> nn.Module:
    model = VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        dropout=0.5,
        num_classes=10,
    )
    # Zero at first, which would let no gradient reach the layers.
    nn.init.normal_(model.get_parameter("heads.head.weight"))
    return model


def _convnext() -> nn.Module:
    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    return ConvNeXt(blocks, stochastic_depth_prob=0.5, layer_scale=1.0, num_classes=10)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tiny-cnn": make_tiny_cnn,
    "resnet18-nominal": lambda: models.load("resnet18-nominal"),
    "torchvision-resnet18": lambda: resnet18(num_classes=10),
    "vision-transformer": _vision_transformer,
    "convnext": _convnext,
    "group-norm": partial(_convolutional, lambda: nn.GroupNorm(2, 8)),
    "instance-norm": partial(_convolutional, lambda: nn.InstanceNorm2d(8, affine=True)),
    "sync-batch-norm": partial(_convolutional, lambda: nn.SyncBatchNorm(8)),
    "layer-norm": partial(_linear, lambda: nn.LayerNorm(16)),
    "rms-norm": partial(_linear, lambda: nn.RMSNorm(16)),
    "batch-norm-1d": partial(_linear, lambda: nn.BatchNorm1d(16)),
}
BATCH_NORM = (
    "tiny-cnn",
    "resnet18-nominal",
    "torchvision-resnet18",
    "sync-batch-norm",
    "batch-norm-1d",
)
CONFIGS = {
    "dent": replace(DENT, steps=2),
    "dent-plus": replace(DENT_PLUS, steps=2),
    "dent-nominal": replace(DENT_NOMINAL, steps=2),
    "alone": DentConfig(steps=2, lr=0.1, optimizer="sgd", granularity="sample", reduction="sum"),
    "static-smoothing": DentConfig(steps=0, smoothing=SmoothingConfig(sigma=0.5, learn=False)),
    "statistics-only": DentConfig(steps=0, statistics="test"),
}
CASES = [
    pytest.param(model, config, id=f"{model}-{config}")
    for model in MODELS
    for config in CONFIGS
    if config != "statistics-only" or model in BATCH_NORM
]


@pytest.fixture(scope="module")
def built() -> Callable[[str], nn.Module]:
    """Return a function that builds a model by name, its random weights always the same."""
    cache: dict[str, nn.Module] = {}

    def build(name: str) -> nn.Module:
        if name not in cache:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                cache[name] = MODELS[name]()
        return deepcopy(cache[name]).eval()

    return build


_HOOK_KINDS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def _flags(model: nn.Module) -> list[Any]:
    modules = list(model.named_modules())
    return [
        [(name, id(value), value.requires_grad) for name, value in model.named_parameters()],
        [(name, [dict(getattr(module, kind)) for kind in _HOOK_KINDS]) for name, module in modules],
        [(name, module.training) for name, module in modules],
    ]


@pytest.mark.parametrize(("model_name", "config_name"), CASES)
def test_a_defense_adapts_predicts_and_forgets(
    model_name: str, config_name: str, built: Callable[[str], nn.Module]
) -> None:
    model, config, x = built(model_name), CONFIGS[config_name], _images()
    frozen, other = itertools.islice(model.parameters(), 2)
    frozen.requires_grad_(False)
    other.grad = torch.ones_like(other)
    x.requires_grad_()
    model.register_forward_hook(lambda *_: None)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags, random_state, given = _flags(model), torch.get_rng_state(), x.clone()
    trained = dict(model.named_parameters())

    defense = Dent(model, config)
    adaptation = defense.adapt(x)
    logits = defense.predict(x, adaptation)

    assert logits.shape == (3, 10)
    assert logits.isfinite().all()
    assert torch.equal(defense(x), logits)
    assert adaptation.entropy.shape == (config.steps, 3)
    assert adaptation.status.eq(0).all()
    moved = [
        not torch.equal(value, trained[name].expand_as(value))
        for name, value in adaptation.parameters.items()
    ]
    assert moved
    assert any(moved) == (config.steps > 0)

    assert _flags(model) == flags
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], value) for name, value in state.items())
    assert torch.equal(other.grad, torch.ones_like(other))
    assert all(p.grad is None for p in (x, *model.parameters()) if p is not other)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(x, given)


@pytest.mark.parametrize(
    ("model_name", "config_name"), [c for c in CASES if "nominal-" not in str(c.id)]
)
def test_training_mode_changes_nothing(
    model_name: str, config_name: str, built: Callable[[str], nn.Module]
) -> None:
    model, x = nn.Sequential(nn.Dropout(0.5), built(model_name), nn.Dropout(0.5)), _images()
    defense = Dent(model, CONFIGS[config_name])
    expected = defense.eval()(x)
    random_state = torch.get_rng_state()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(defense.train()(x), expected)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("granularity", ["batch", "sample"])
@pytest.mark.parametrize("model_name", list(MODELS))
def test_small_steps_lower_the_objective(
    model_name: str, granularity: str, built: Callable[[str], nn.Module]
) -> None:
    values = {
        "steps": 3,
        "lr": 1e-3,
        "optimizer": "sgd",
        "betas": (0.0, 0.0),
        "granularity": granularity,
        "reduction": "sum",
    }
    defense = Dent(built(model_name).double(), DentConfig.from_dict(values))
    entropy = defense.adapt(_images(torch.float64)).entropy
    objective = entropy.sum(1, keepdim=True) if granularity == "batch" else entropy
    assert (objective.diff(dim=0) < 0).all()
