"""Requirements that every defense must meet for every model."""

import itertools
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dent.config import DENT, DENT_NOMINAL, DENT_PLUS, DentConfig, SmoothingConfig
from dent.defenses.dent import Dent
from tests.on_device import DEVICE, random_states, same_states
from tests.small_models import BATCH_NORM, MODELS, make_images

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
def built(device: torch.device) -> Callable[[str], nn.Module]:
    """Return a function that builds a model by name, always with the same random weights."""
    cache: dict[str, nn.Module] = {}

    def build(name: str) -> nn.Module:
        if name not in cache:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                cache[name] = MODELS[name]()
        return deepcopy(cache[name]).eval().to(device)

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
def test_a_defense_adapts_and_predicts_without_changing_the_model(
    model_name: str, config_name: str, built: Callable[[str], nn.Module]
) -> None:
    model, config = built(model_name), CONFIGS[config_name]
    x = make_images().to(DEVICE)
    frozen, other = itertools.islice(model.parameters(), 2)
    frozen.requires_grad_(False)
    other.grad = torch.ones_like(other)
    x.requires_grad_()
    model.register_forward_hook(lambda *_: None)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags, drawn, given = _flags(model), random_states(), x.clone()
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
    assert same_states(random_states(), drawn)
    assert torch.equal(x, given)


@pytest.mark.parametrize(
    ("model_name", "config_name"), [c for c in CASES if "nominal-" not in str(c.id)]
)
def test_training_mode_changes_neither_the_logits_nor_the_model(
    model_name: str, config_name: str, built: Callable[[str], nn.Module]
) -> None:
    model = nn.Sequential(nn.Dropout(0.5), built(model_name), nn.Dropout(0.5))
    x = make_images().to(DEVICE)
    defense = Dent(model, CONFIGS[config_name])
    expected = defense.eval()(x)
    drawn = random_states()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(defense.train()(x), expected)
    assert all(module.training for module in model.modules())
    assert same_states(random_states(), drawn)
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
    entropy = defense.adapt(make_images(torch.float64).to(DEVICE)).entropy
    objective = entropy.sum(1, keepdim=True) if granularity == "batch" else entropy
    assert (objective.diff(dim=0) < 0).all()
